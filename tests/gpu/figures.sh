# The figures of tests/gpu/run.sh, each beside PyTorch's. Sourced by it.

value_of() { sed -n "s/.*\"$1\": *\"\{0,1\}\([^,\"}]*\).*/\1/p" "$2" | tail -1; } # key, file of JSON lines
rounded() { awk -v x="$1" -v digits="$2" 'BEGIN { printf "%.*f", digits, x }'; }
say() { remark=${remark:+$remark; }$1; }

# ------------------------------------------------------------------------------------------------------------ PyTorch

# PyTorch brings its own libraries: it starts as the caller would start it. Its answer: $work/pytorch.json.
pytorch_measures() { # limit, command and arguments of compare_pytorch_gpu.py
  local limit=$1 command=$2 where=()
  shift 2
  [ -n "$tiny" ] && where=(--device cpu --eager)
  local python=(env -u OPAL_PREFIX LD_LIBRARY_PATH="${LONGSPAN_CALLERS_LIBRARY_PATH-${LD_LIBRARY_PATH-}}"
    "${LONGSPAN_PYTHON:-python3}")
  if [ -z "${no_pytorch+set}" ]; then
    no_pytorch=
    if ! "${python[@]}" -c 'import sys' > "$work/pytorch.log" 2>&1; then
      no_pytorch="no ${LONGSPAN_PYTHON:-python3} here"
    elif ! "${python[@]}" -c 'import torch' > "$work/pytorch.log" 2>&1; then
      no_pytorch="no torch: $(tail -1 "$work/pytorch.log")"
    elif [ -z "$tiny" ] &&
      ! "${python[@]}" -c 'import sys, torch; torch.cuda.is_available() or sys.exit("torch finds no GPU")' \
        > "$work/pytorch.log" 2>&1; then
      no_pytorch=$(tail -1 "$work/pytorch.log")
    fi
  fi
  pytorch=n/a
  if [ -n "$no_pytorch" ]; then say "PyTorch: ${no_pytorch:0:100}"; return 1; fi
  limit=$(capped "$limit")
  if [ "$limit" -lt 20 ]; then say "PyTorch: no time left"; return 1; fi
  if timeout -k 5 "$limit" "${python[@]}" "$pytorch_scripts/compare_pytorch_gpu.py" "$command" \
    ${where[@]+"${where[@]}"} "$@" > "$work/pytorch.json" 2> "$work/pytorch.log" < /dev/null; then
    cat "$work/pytorch.json" >> "$log"
    return 0
  fi
  local status=$?
  cat "$work/pytorch.log" >> "$log"
  [ $status -eq 124 ] && say "PyTorch: not done in $limit s" || say "PyTorch: $(tail -1 "$work/pytorch.log" | cut -c 1-100)"
  return 1
}

# ----------------------------------------------------------------------------------------------------------- training

# Ids of which every pair of bytes is one: below 196 * 257, which GPT-2's vocabulary holds; two kinds of bytes in --tiny.
token_dataset() {
  local bytes='\304-\377' count=8600000
  [ -e "$work/tokens.h5" ] && return
  [ -n "$tiny" ] && bytes='\002-\377' count=20000
  LC_ALL=C tr -d "$bytes" < /dev/urandom | head -c $count > "$work/tokens.bin"
  logged 60 "$longspan" prepare --kind tokens --dtype u16 --validation 0 --output "$work/tokens.h5" "$work/tokens.bin"
}

training=
end_training() {
  [ -n "$training" ] && kill -KILL "$training" 2> /dev/null && wait "$training" 2> /dev/null
  training=
}
# Trains until `steps` steps are in the metrics, $work/run/metrics.jsonl. The end of a run would write a checkpoint of many
# gigabytes, which is not what is measured: this one is asked for a step more and ended before.
train_steps() { # steps, limit, arguments
  local steps=$1 limit begin=$SECONDS
  limit=$(capped "$2")
  shift 2
  rm -rf "$work/run"
  "$longspan" train "$@" --run.device cuda --data.path "$work/tokens.h5" --run.directory "$work/run" \
    --train.steps $((steps + 1)) --train.validate-every 0 --checkpoint.every 0 >> "$log" 2>&1 < /dev/null &
  training=$!
  until [ "$(cat "$work/run/metrics.jsonl" 2> /dev/null | wc -l)" -ge "$steps" ]; do
    if ! kill -0 "$training" 2> /dev/null; then
      # The last lines may have come between the two questions.
      [ "$(cat "$work/run/metrics.jsonl" 2> /dev/null | wc -l)" -ge "$steps" ] && break
      wait "$training"
      echo "run.sh: the training ended with status $? before step $steps" >> "$log"
      training=
      return 1
    fi
    if [ $((SECONDS - begin)) -ge "$limit" ]; then
      end_training
      echo "run.sh: timed out after $limit s, before step $steps" >> "$log"
      return 1
    fi
    sleep 0.2
  done
  end_training
  head -n "$steps" "$work/run/metrics.jsonl" >> "$log"
}
# Of a key of the metrics, the first `skip` lines left out.
median_of() { # key, steps, skip
  head -n "$2" "$work/run/metrics.jsonl" | tail -n +$(($3 + 1)) | sed "s/.*\"$1\":\([^,}]*\).*/\1/" | sort -g |
    awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

# The peak that MFU is a share of: of the data sheet, bf16, dense, without sparsity.
datasheet_peak() {
  case $gpu in
    *H200* | *GH200* | *"H100 80GB HBM3"* | *"H100 SXM"*) echo 989e12 ;;
    *"H100 NVL"*) echo 835e12 ;;
    *"H100 PCIe"*) echo 756e12 ;;
    *A100*) echo 312e12 ;;
  esac
}

# Steps `skip` + 1 to `steps` of a configuration. What is asked: tokens/s, % MFU, or that a step is done.
training_figure() { # asked, unit, configuration, steps, skip, limit
  local config=$configs/gpu/$3.ini steps=$4 skip=$5 limit=$6 peak small=() set=() i
  asked=$1 unit=$2
  if [ -n "$tiny" ]; then
    small=(--model.layers 1 --model.width 64 --model.heads 1 --model.kv-heads 1 --model.head-size 64 --model.mlp-width 64
      --model.vocabulary 512 --data.sequence-length 64 --train.micro-batch 1 --train.global-batch 2)
  fi
  token_dataset || return
  logged 30 "$longspan" plan --config "$config" ${small[@]+"${small[@]}"} --machine "$configs/machines/h200-ndr.ini" \
    --nodes 1 --ranks-per-node 1 || return
  train_steps "$steps" "$limit" --config "$config" ${small[@]+"${small[@]}"} || return
  local seconds tokens bytes
  seconds=$(median_of step_seconds "$steps" "$skip")
  tokens=$(median_of tokens_per_second "$steps" "$skip")
  bytes=$(median_of peak_memory_bytes "$steps" "$skip")
  say "$(rounded "$tokens" 0) tokens/s, $(awk "BEGIN { printf \"%.1f\", 1e-9 * $bytes }") GB"
  # The model's FLOPs of a step, from the plan, where they are a share of an H200's peak.
  "$longspan" plan --config "$config" ${small[@]+"${small[@]}"} --machine "$configs/machines/h200-ndr.ini" --nodes 1 \
    --ranks-per-node 1 --json > "$work/plan.json" 2>> "$log" || return
  local flops percent
  flops=$(awk "BEGIN { print 989e12 * $(value_of mfu "$work/plan.json") * $(value_of step_seconds "$work/plan.json") }")
  peak=$(datasheet_peak)
  if [ -n "$peak" ]; then
    percent=$(awk "BEGIN { print 100 * $flops / $seconds / $peak }")
    say "$(rounded "$percent" 1) % MFU"
  else
    percent=$(awk "BEGIN { print 100 * $(median_of mfu "$steps" "$skip") }")
    say "$(rounded "$percent" 1) % MFU of the matrix product's speed here"
  fi
  case $unit in
    tokens/s) measured=$(rounded "$tokens" 0) ;;
    '% MFU') measured=$(rounded "$percent" 2) ;;
    step) measured=$steps ;;
  esac

  for ((i = 0; i + 1 < ${#small[@]}; i += 2)); do set+=(--set "${small[i]#--}=${small[i + 1]}"); done
  pytorch_measures 150 train --config "$config" ${set[@]+"${set[@]}"} --steps "$steps" --skip "$skip" || return 0
  local theirs
  theirs=$(value_of tokens_per_second "$work/pytorch.json")
  case $unit in
    tokens/s) pytorch=$(rounded "$theirs" 0) ;;
    '% MFU') pytorch=$(awk "BEGIN { printf \"%.1f\", $percent * $theirs / $tokens }") ;;
    step) pytorch=$steps ;;
  esac
  [ "$unit" = tokens/s ] || say "PyTorch $(rounded "$theirs" 0) tokens/s"
  say "PyTorch: micro-batch $(value_of micro_batch "$work/pytorch.json"), attention $(value_of attention "$work/pytorch.json")"
}

# ------------------------------------------------------------------------------------------------------------ kernels

# Output of one run of bench_gpu_kernels, made once: $work/bench-NAME.
benchmark() { # name, arguments
  local name=$1
  shift
  if [ ! -s "$work/bench-$name" ]; then
    timeout -k 5 "$(capped 120)" "$bench" ${tiny:+--tiny} "$@" > "$work/bench-new" 2>&1 < /dev/null ||
      { cat "$work/bench-new" >> "$log"; return 1; }
    mv "$work/bench-new" "$work/bench-$name"
  fi
  cat "$work/bench-$name" >> "$log"
}

attention_tokens=32768
attention_figure() { # asked, forward or backward, cudnn or own
  local words=(--only attention --tokens "$attention_tokens") row="attention $2"
  asked=$1 unit=TFLOP/s
  [ "$2" = backward ] && row='attention backward (10 per pair)'
  [ "$3" = own ] && words+=(--own)
  benchmark "attention-$3" "${words[@]}" || return
  local what
  what=$(head -1 "$work/bench-attention-$3")
  if [ "$3" = cudnn ] && [[ $what != *"attention: cuDNN"* ]]; then
    measured=n/a
    say "$(sed -n '1s/.*; \(attention: [^;]*\).*/\1/p' "$work/bench-attention-$3")"
  elif [ "$3" = cudnn ] && grep -q 'own kernel, because' "$work/bench-attention-$3"; then
    measured=n/a
    say "$(grep -m1 -o 'own kernel, because.*' "$work/bench-attention-$3")"
  else
    measured=$(grep -F "$row" "$work/bench-attention-$3" | awk '{ print $(NF - 1) }')
    [ -n "$measured" ] || { echo "run.sh: bench_gpu_kernels printed no row '$row'" >> "$log"; return 1; }
  fi
  if [ ! -s "$work/pytorch-attention.json" ]; then
    pytorch_measures 90 attention --tokens "$attention_tokens" ${tiny:+--heads 2 --kv-heads 1} || return 0
    cp "$work/pytorch.json" "$work/pytorch-attention.json"
  fi
  pytorch=$(rounded "$(value_of "$2_tflops" "$work/pytorch-attention.json")" 1)
  say "PyTorch: $(value_of "$2_backend" "$work/pytorch-attention.json")"
}

memory_figure() { # asked
  asked=$1 unit='% copy'
  benchmark memory --only memory || return
  local lowest
  lowest=$(awk '/% of copy/ && !/^copy of/ { share = $(NF - 3); if (best == "" || share + 0 < best) { best = share; line = $0 } }
    END { if (best == "") exit 1; sub(/ \[.*/, "", line); print best, line }' "$work/bench-memory") ||
    { echo "run.sh: bench_gpu_kernels printed no memory-bound kernels" >> "$log"; return 1; }
  measured=${lowest%% *}
  say "the slowest: ${lowest#* }; copy $(awk '/^copy of/ { print $(NF - 5), $(NF - 4) }' "$work/bench-memory")"
  pytorch_measures 120 memory ${tiny:+--rows 64 --width 64} || return 0
  pytorch=$(rounded "$(value_of lowest_percent "$work/pytorch.json")" 1)
  say "PyTorch: $(value_of lowest "$work/pytorch.json")"
}

# -------------------------------------------------------------------------------------------------------------- goals

# The goals are one H200's.
figure_rows() {
  [ -n "$tiny" ] && attention_tokens=64
  row attention-cudnn-forward 30 attention_figure 600 forward cudnn
  row attention-cudnn-backward 5 attention_figure 520 backward cudnn
  row attention-own-forward 15 attention_figure 330 forward own
  row attention-own-backward 5 attention_figure 250 backward own
  row memory-bound 30 memory_figure 85
  row gpt2-124m 20 training_figure 450000 tokens/s gpt2-124m $((tiny ? 2 : 20)) $((tiny ? 1 : 5)) 90
  row gpt2-1.5b 30 training_figure 50000 tokens/s gpt2-1.5b $((tiny ? 2 : 6)) $((tiny ? 1 : 2)) 90
  row llama-1b-128k 50 training_figure 55 '% MFU' llama-1b-128k 2 1 120
  row 1m-tokens 80 training_figure 1 step 1m-tokens 1 0 200
  group=extra # not part of everything: ten minutes, an H200 and 137 GB of the host's memory
  row llama-1b-1m 900 training_figure 1 step llama-1b-1m 1 0 1500
}

# The rows of tests/gpu/run.sh: begun while there is time, kept in $results, printed as a table. Sourced by it.

failed=0
matched=()  # names and groups that --only found
shown=()
group=

wanted() { # name
  local one
  [ ${#only[@]} -eq 0 ] && [ "$group" != extra ] && return 0
  for one in ${only[@]+"${only[@]}"}; do
    if [ "$one" = "$1" ] || [ "$one" = "$group" ]; then matched+=("$one"); return 0; fi
  done
  return 1
}

seconds_left() { awk -v minutes="$minutes" -v gone="$SECONDS" 'BEGIN { print int(60 * minutes - gone) }'; }

# The first line that says what went wrong, else the last one.
first_error() { # file
  local line
  line=$(grep -m1 -iE '^(longspan|bench_[a-z_]*|run\.sh|rank [0-9]+[^:]*): |error|failure|fatal|cannot|timed out' "$1") ||
    line=$(grep -v '^ *$' "$1" | tail -1)
  printf '%s' "${line:0:150}" | tr '\t' ' '
}

# A limit in seconds, but not beyond the time that is left: the table must come.
capped() {
  local left
  left=$(seconds_left)
  echo $(($1 < left ? $1 : left > 1 ? left : 1))
}

# Runs a command within `limit` seconds; what it says goes to the row's log.
logged() { # limit, command
  local limit status
  limit=$(capped "$1")
  shift
  timeout -k 10 "$limit" "$@" >> "$log" 2>&1 < /dev/null
  status=$?
  [ $status -eq 124 ] && echo "run.sh: timed out after $limit s" >> "$log"
  return $status
}

# One row. The function sets what it measured in: asked measured unit pytorch remark. It fails by its status.
# `estimate`: seconds that it probably takes; without so many left it is not begun.
row() { # name, estimate, function, arguments
  local name=$1 estimate=$2 begin=$SECONDS state
  shift 2
  asked='' measured='' unit='' pytorch='' remark=''
  if [ -n "$list_only" ]; then
    printf '%-32s %s\n' "$name" "$group"
    matched+=("$name" "$group")
    return
  fi
  wanted "$name" || return 0
  shown+=("$name")
  if [ ${#only[@]} -eq 0 ] && grep -qv '^FAILED' "$results/$name.row" 2> /dev/null; then
    echo "--- $name: done before"
    return
  fi
  if [ "$(seconds_left)" -lt "$estimate" ]; then
    [ -e "$results/$name.row" ] || left_out[$name]="$(seconds_left) s are left, it takes about $estimate: --only $name --minutes $((estimate / 20 + 1))"
    return
  fi
  echo "--- $name"
  log=$results/$name.log
  : > "$log"
  if "$@"; then
    state=good
    [ -n "$asked" ] && state=$(judge)
  else
    state=FAILED failed=1 remark=$(first_error "$log")
    tail -20 "$log"
  fi
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$state" "$asked" "$measured" "$unit" "$pytorch" "$((SECONDS - begin)) s" "$remark" \
    > "$results/$name.row"
}
declare -A left_out=()

judge() {
  if [ "$measured" = n/a ]; then echo n/a
  elif [[ ! $asked =~ ^[0-9] ]]; then echo good
  elif awk "BEGIN { exit !($measured >= $asked) }"; then echo reached
  else echo below; fi
}

print_table() {
  local name state line=' %-32s %-8s %9s %10s %-9s %11s %6s  %s\n'
  printf '\n%s\n\n' "$gpu"
  printf "$line" '' '' asked measured unit PyTorch took ''
  for name in ${shown[@]+"${shown[@]}"}; do
    if [ -e "$results/$name.row" ]; then
      # Tabs are white space to read, which takes several for one.
      IFS=$'\x1f' read -r state asked measured unit pytorch took remark < <(tr '\t' '\037' < "$results/$name.row")
      [ "$state" = FAILED ] && failed=1
      printf "$line" "$name" "$state" "$asked" "$measured" "$unit" "$pytorch" "$took" "$remark"
    else
      printf "$line" "$name" 'not run' '' '' '' '' '' "${left_out[$name]}"
    fi
  done
}

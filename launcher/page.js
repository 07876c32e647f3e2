// Draws the charts of a page with D3 (version 5 or later). Every figure.chart holds its data as JSON, made by
// page_chart.cpp: {kind by "categories", titles, axes, series of x, y, low, high}. Colours are CSS variables,
// so that light, dark and print need no second drawing.
(function () {
  "use strict";

  function number(v) {
    return v === 0 ? "0" : d3.format(Math.abs(v) >= 1e4 ? ".4~s" : ".4~g")(v);
  }
  const exists = (v) => v !== null && v !== undefined && isFinite(v);
  // As page.cpp colours the legend: ideal lines do not count.
  function coloured(series) {
    let next = 0;
    for (const s of series) s.colour = s.style === "ideal" ? "var(--muted)" : "var(--s" + (next++ % 8) + ")";
  }

  function domain(values, log, fromZero) {
    let [low, high] = d3.extent(values.filter((v) => exists(v) && (!log || v > 0)));
    if (low === undefined) return log ? [1, 10] : [0, 1];
    if (!log && fromZero) low = Math.min(0, low), high = Math.max(0, high);
    if (log) return low === high ? [low / 2, high * 2] : [low, high];
    if (low === high) {
      const around = Math.abs(low) || 1;
      return [low - 0.1 * around, high + 0.1 * around];
    }
    return [low, high];
  }

  // 1, 2, 5, 10 over few decades, powers of ten over many; D3's own would label almost none of few.
  function logTicks(scale, count) {
    const [low, high] = scale.domain(), decades = Math.log10(high / low);
    if (decades < 0.7) return d3.ticks(low, high, count).filter((v) => v > 0);
    const every = Math.max(1, Math.ceil(decades / count)), ticks = [];
    for (let k = Math.floor(Math.log10(low)); k <= Math.log10(high); k += every) {
      for (const m of decades * 3 <= count * 1.5 ? [1, 2, 5] : [1]) ticks.push(m * Math.pow(10, k));
    }
    return ticks.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  }

  function canvas(box, width, height) {
    return d3.select(box).html("").append("svg")
      .attr("viewBox", [0, 0, width, height].join(" ")).attr("aria-hidden", "true");
  }

  function drawLines(figure, box, data, width) {
    const height = width < 480 ? 240 : 300;
    const points = data.series.flatMap((s) => s.x.map((x, i) =>
      ({s, i, x, y: s.y[i], low: s.low ? s.low[i] : null, high: s.high ? s.high[i] : null})));
    const shown = points.filter((p) => exists(p.x) && exists(p.y));
    const places = Array.from(new Set(shown.map((p) => p.x))).sort(d3.ascending);
    const x = (data.xLog ? d3.scaleLog() : d3.scaleLinear())
      .domain(domain(places.concat(data.xLog ? [] : data.marks.map((m) => m.x)), data.xLog, false));
    const y = (data.yLog ? d3.scaleLog() : d3.scaleLinear())
      .domain(domain(shown.flatMap((p) => [p.y, p.low, p.high]), data.yLog, data.yFromZero))
      .range([height - 42, 26]);
    if (data.yLog) y.domain([y.domain()[0] / 1.1, y.domain()[1] * 1.1]);
    else y.nice();
    const yTicks = data.yLog ? logTicks(y, height / 50) : y.ticks(height / 50);
    const left = 15 + 7 * Math.max(2, d3.max(yTicks, (v) => number(v).length) || 0), right = width - 14;
    x.range([left, right]);
    // Few points under a logarithm (1, 2, 4 ranks) are named themselves.
    const xTicks = !data.xLog ? x.ticks(width / 90) : places.length <= 10 ? places : logTicks(x, width / 60);
    const xText = (v) => xTicks === places && Number.isInteger(v) ? String(v) : number(v);

    const svg = canvas(box, width, height);
    svg.append("g").attr("transform", `translate(${left},0)`)
      .call(d3.axisLeft(y).tickValues(yTicks).tickFormat(number).tickSize(left - right).tickPadding(7))
      .call((g) => g.select(".domain").remove());
    svg.append("g").attr("transform", `translate(0,${height - 42})`)
      .call(d3.axisBottom(x).tickValues(xTicks).tickFormat(xText).tickSizeOuter(0))
      .call((g) => g.selectAll(".tick text")
        .attr("text-anchor", (v) => x(v) > right - 5 && xText(v).length > 3 ? "end" : "middle"));
    svg.append("text").attr("x", 0).attr("y", 12).text(data.yTitle);
    svg.append("text").attr("x", right).attr("y", height - 6).attr("text-anchor", "end").text(data.xTitle);

    for (const mark of data.marks) {
      if (!exists(mark.x) || (data.xLog && mark.x <= 0)) continue;
      const line = svg.append("line").attr("class", "mark")
        .attr("x1", x(mark.x)).attr("x2", x(mark.x)).attr("y1", 26).attr("y2", height - 42);
      line.append("title").text(mark.text);
      if (data.marks.length > 6) continue;
      const late = x(mark.x) > (left + right) / 2;
      svg.append("text").attr("x", x(mark.x) + (late ? -4 : 4)).attr("y", 36)
        .attr("text-anchor", late ? "end" : "start").text(mark.text);
    }
    for (const s of data.series) {
      const own = points.filter((p) => p.s === s && exists(p.x));
      const drawn = (p) => exists(p.y);
      const dots = s.style === "points" || s.style === "both";
      if (s.low && !dots) {
        svg.append("path").attr("class", "band").style("fill", s.colour).attr("d", d3.area()
          .defined((p) => exists(p.low)).x((p) => x(p.x)).y0((p) => y(p.low)).y1((p) => y(p.high))(own));
      }
      if (s.style !== "points") {
        const line = svg.append("path").attr("class", s.style === "ideal" ? "ideal" : "line")
          .attr("d", d3.line().defined(drawn).x((p) => x(p.x)).y((p) => y(p.y))(own));
        if (s.style !== "ideal") line.style("stroke", s.colour);
      }
      // A point between two gaps would be a line without length.
      const alone = own.filter((p, i) => drawn(p) && !(i && drawn(own[i - 1])) &&
        !(i + 1 < own.length && drawn(own[i + 1])));
      for (const p of dots ? own.filter(drawn) : alone) {
        if (dots && exists(p.low) && exists(p.high)) {
          svg.append("path").attr("class", "error").style("stroke", s.colour)
            .attr("d", `M${x(p.x) - 4},${y(p.low)}h8m-4,0V${y(p.high)}m-4,0h8`);
        }
        svg.append("circle").attr("cx", x(p.x)).attr("cy", y(p.y)).attr("r", 3.5).style("fill", s.colour)
          .append("title").text((s.labels ? s.labels[p.i] : s.name) + ": " + number(p.x) + ", " + number(p.y));
      }
    }
    readOut(figure, svg, data, {x, y, width, height, places});
  }

  // The values nearest to the pointer, under the chart.
  function readOut(figure, svg, data, chart) {
    const out = figure.querySelector(".readout");
    const rule = svg.append("line").attr("class", "pointer").attr("y1", 26).attr("y2", chart.height - 42);
    // D3's own on() has changed what it hands over from version 5 to 6.
    svg.node().addEventListener("pointerleave", () => {
      out.textContent = "";
      rule.style("visibility", "hidden");
    });
    svg.node().addEventListener("pointermove", (event) => {
      const area = svg.node().getBoundingClientRect();
      const pixel = (event.clientX - area.left) * chart.width / area.width;
      const nearest = (list) => {
        let best = -1, least = Infinity;
        list.forEach((v, i) => {
          const away = exists(v) ? Math.abs(chart.x(v) - pixel) : Infinity;
          if (away < least) least = away, best = i;
        });
        return best;
      };
      const place = chart.places[nearest(chart.places)];
      if (place === undefined) return;
      const texts = [];
      for (const s of data.series) {
        const i = nearest(s.x);
        if (i < 0 || !exists(s.y[i]) || Math.abs(chart.x(s.x[i]) - chart.x(place)) > 12) continue;
        let text = (s.name || data.yTitle) + " " + d3.format(".5~g")(s.y[i]);
        if (s.labels) text += " (" + s.labels[i] + ")";
        if (s.low) text += " (" + number(s.low[i]) + " to " + number(s.high[i]) + ")";
        texts.push(text);
      }
      out.textContent = data.xTitle + " " + d3.format(Math.abs(place) < 1000 ? ",.6~g" : ",.0f")(place) + ": " + texts.join(" · ");
      rule.attr("x1", chart.x(place)).attr("x2", chart.x(place)).style("visibility", "visible");
    });
  }

  function drawBars(figure, box, data, width) {
    const thick = data.grouped ? 13 * data.series.length : 20, step = thick + 32;
    const height = 8 + data.categories.length * step + 44, right = width - 14;
    const sums = data.categories.map((_, c) => d3.sum(data.series, (s) => Math.max(0, s.y[c] || 0)));
    const most = data.grouped ? d3.max(data.series.flatMap((s) => s.y.concat(s.high || []))) : d3.max(sums);
    const x = d3.scaleLinear().domain([0, most > 0 ? most : 1]).range([1, right]).nice();
    const svg = canvas(box, width, height);
    svg.append("g").attr("transform", `translate(0,${height - 42})`)
      .call(d3.axisBottom(x).ticks(width / 90).tickFormat(number).tickSize(50 - height))
      .call((g) => g.select(".domain").remove())
      .call((g) => g.selectAll(".tick text").attr("dy", "1.1em")
        .attr("text-anchor", (v) => v === 0 ? "start" : x(v) > right - 20 ? "end" : "middle"));
    svg.append("text").attr("x", right).attr("y", height - 6).attr("text-anchor", "end").text(data.yTitle);
    data.categories.forEach((category, c) => {
      const top = 8 + c * step;
      svg.append("text").attr("class", "name").attr("x", 0).attr("y", top + 13)
        .text(category.length * 7.6 > right ? category.slice(0, Math.floor(right / 7.6)) + "…" : category)
        .append("title").text(category);
      let from = 0;
      data.series.forEach((s, k) => {
        const value = s.y[c];
        if (!exists(value) || value <= 0) return;
        svg.append("rect").attr("x", x(from)).attr("width", Math.max(0.5, x(from + value) - x(from)))
          .attr("y", top + 19 + (data.grouped ? 13 * k : 0)).attr("height", data.grouped ? 11 : thick)
          .style("fill", s.colour)
          .append("title").text(category + ", " + s.name + ": " + number(value));
        if (!data.grouped) from += value;
        if (!s.low || !exists(s.low[c])) return;
        const middle = top + 19 + (data.grouped ? 13 * k + 5.5 : thick / 2), end = data.grouped ? 0 : from - value;
        svg.append("path").attr("class", "error").style("stroke", "var(--ink)")
          .attr("d", `M${x(end + s.low[c])},${middle - 3}v6m0,-3H${x(end + s.high[c])}m0,-3v6`);
      });
    });
  }

  function draw(figure) {
    const box = figure.querySelector(".plot"), width = Math.floor(box.clientWidth);
    if (width < 100 || figure.drawnWidth === width) return;
    figure.drawnWidth = width;
    try {
      const data = JSON.parse(figure.querySelector("script").textContent);
      coloured(data.series);
      (data.categories.length > 0 ? drawBars : drawLines)(figure, box, data, width);
    } catch (error) {
      console.error(error);
      box.textContent = "This chart could not be drawn; its numbers are in the table below.";
    }
  }

  const figures = document.querySelectorAll("figure.chart");
  figures.forEach(draw);
  const watch = new ResizeObserver((entries) => entries.forEach((e) => draw(e.target.closest("figure"))));
  figures.forEach((f) => watch.observe(f.querySelector(".plot")));
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
})();

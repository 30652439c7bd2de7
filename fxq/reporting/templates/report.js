"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { nodes, edges, tensors, layout } = data;
  const byId = (id) => document.getElementById(id);
  // Characters that are not shown, or turn the direction of writing, as their numbers.
  const shown = (text) => String(text).replace(/\p{C}/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
  const number = (value) => (typeof value === "number" ? Number(value.toPrecision(4)).toString() : String(value));
  const decibel = (value) => (value === null ? "–" : value === "inf" ? "exact" : `${Number(value).toFixed(1)} dB`);

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    for (const child of children) made.append(typeof child === "string" ? shown(child) : child);
    return made;
  }
  function drawing(name, attributes = {}, text = null) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== null) made.textContent = shown(text);
    return made;
  }
  const titled = (made, text) => {
    made.append(drawing("title", {}, text));
    return made;
  };

  // ---- histograms
  const WIDTH = 240, HEIGHT = 74;
  function histogram(tensor) {
    const figure = element("figure");
    const kind = tensor.is_weight ? "weight" : "activation";
    const ranges = tensor.ranges > 1 ? `, outermost of ${tensor.ranges}` : "";
    const range = tensor.low === null ? "" : ` [${number(tensor.low)}, ${number(tensor.high)}]${ranges}`;
    figure.append(element("figcaption", {}, element("b", {}, tensor.quantizer), ` ${kind}${range}`));
    const found = tensor.histogram;
    if (found === null) {
      figure.append(element("p", { class: "note" }, "its values were not kept"));
      return figure;
    }
    const low = tensor.low === null || found.is_absolute ? found.low : Math.min(found.low, tensor.low);
    const high = tensor.high === null ? found.high : Math.max(found.high, tensor.high);
    const place = (value) => (WIDTH * (value - low)) / (high - low || 1);
    const svg = drawing("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + 14}`, role: "img" });
    titled(svg, `Histogram of ${tensor.quantizer}`);
    const most = Math.log1p(Math.max(...found.counts)) || 1;
    const wide = (found.high - found.low) / found.counts.length;
    const path = found.counts.map((count, index) => {
      const left = place(found.low + index * wide), right = wide ? place(found.low + (index + 1) * wide) : WIDTH;
      const top = HEIGHT - (HEIGHT - 4) * (Math.log1p(count) / most);
      return count ? `M${left.toFixed(1)} ${HEIGHT}V${top.toFixed(1)}H${right.toFixed(1)}V${HEIGHT}Z` : "";
    });
    svg.append(drawing("path", { class: "bar", d: path.join("") }));
    const bounds = tensor.low === null ? [] : found.is_absolute ? [tensor.high] : [tensor.low, tensor.high];
    for (const bound of bounds) {
      const at = place(bound), isHigh = bound === tensor.high;
      const left = isHigh ? at : 0;
      const width = isHigh ? WIDTH - at : at;
      if (width > 0) svg.append(drawing("rect", { class: "outside", x: left, y: 0, width, height: HEIGHT }));
      svg.append(drawing("path", { class: "bound", d: `M${at.toFixed(1)} 0V${HEIGHT}` }));
    }
    svg.append(drawing("text", { x: 0, y: HEIGHT + 11 }, (found.is_absolute ? "|x| " : "") + number(low)));
    svg.append(drawing("text", { x: WIDTH, y: HEIGHT + 11, "text-anchor": "end" }, number(high)));
    figure.append(svg);
    return figure;
  }
  const tensorOf = new Map(tensors.map((tensor) => [tensor.quantizer, tensor]));
  const PAGE = 36;
  let wanted = PAGE;
  function listTensors() {
    const text = byId("tensor-search").value.trim().toLowerCase(), kind = byId("tensor-kind").value;
    const found = tensors.filter(
      (one) => one.quantizer.toLowerCase().includes(text) && (!kind || one.is_weight === (kind === "weight")),
    );
    byId("histograms").replaceChildren(...found.slice(0, wanted).map(histogram));
    byId("tensors-count").textContent = `${Math.min(wanted, found.length)} of ${found.length} shown`;
    byId("more-tensors").hidden = found.length <= wanted;
  }
  for (const [id, event] of [["tensor-search", "input"], ["tensor-kind", "change"]]) {
    byId(id).addEventListener(event, () => {
      wanted = PAGE;
      listTensors();
    });
  }
  byId("more-tensors").addEventListener("click", () => {
    wanted += PAGE;
    listTensors();
  });

  // ---- the graph
  const canvas = byId("canvas"), pen = canvas.getContext("2d");
  const COLUMN = 190, LAYER = 62, BOX = { width: 164, height: 38 };
  const xs = layout.x.map((x) => x * COLUMN), ys = layout.y.map((y) => y * LAYER);
  const lanes = layout.lanes.map((lane) => (lane === null ? null : lane * COLUMN));
  const isQuantized = nodes.map((node) => node.quantized.length > 0 && node.reason === "");
  const inFloat = new Set(data.coverage.in_float);
  const isFloatLayer = nodes.map((node, index) => !isQuantized[index] && (inFloat.has(node.path) || inFloat.has(node.node)));
  const view = { x: 0, y: 0, scale: 1 };
  let selected = -1, matches = new Set(), waiting = false, colors = {};
  const label = (node) => node.path || node.node;

  function readColors() {
    const style = getComputedStyle(document.documentElement);
    const names = ["card", "ink", "dim", "rule", "quantized", "quantized-fill", "float", "float-fill", "select"];
    colors = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }
  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  }
  function draw() {
    const ratio = window.devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = canvas;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
    const left = -view.x / view.scale - BOX.width, right = (width - view.x) / view.scale + BOX.width;
    const top = -view.y / view.scale - LAYER, bottom = (height - view.y) / view.scale + LAYER;
    const line = Math.max(1.3, 0.8 / view.scale);
    for (const inIntegers of [false, true]) {
      pen.beginPath();
      edges.forEach((edge, index) => {
        if ((edge.quantizer !== null) !== inIntegers) return;
        const from = edge.source, to = edge.target;
        if (ys[to] < top || ys[from] > bottom) return;
        trace(xs[from], ys[from] + BOX.height / 2, xs[to], ys[to] - BOX.height / 2, lanes[index]);
      });
      pen.setLineDash(inIntegers ? [] : [5, 4]);
      pen.lineWidth = inIntegers ? 1.7 * line : line;
      pen.strokeStyle = inIntegers ? colors.quantized : colors.dim;
      pen.stroke();
    }
    pen.setLineDash([]);
    pen.textBaseline = "middle";
    nodes.forEach((node, index) => {
      const x = xs[index], y = ys[index];
      if (x < left || x > right || y < top || y > bottom) return;
      const color = isQuantized[index] ? "quantized" : isFloatLayer[index] ? "float" : "dim";
      pen.fillStyle = colors[`${color}-fill`] || colors.card;
      pen.strokeStyle = index === selected || matches.has(index) ? colors.select : colors[color];
      pen.lineWidth = index === selected ? 3.5 * line : matches.has(index) ? 2.2 * line : line;
      pen.beginPath();
      pen.rect(x - BOX.width / 2, y - BOX.height / 2, BOX.width, BOX.height);
      pen.fill();
      pen.stroke();
      if (view.scale < 0.35) return;
      pen.fillStyle = colors.ink;
      pen.font = "600 12px system-ui, sans-serif";
      pen.fillText(shortened(shown(label(node))), x - BOX.width / 2 + 7, y - 8);
      pen.fillStyle = colors.dim;
      pen.font = "11px system-ui, sans-serif";
      const shape = node.shape === null ? "" : ` ${node.shape.join("×")}`;
      pen.fillText(shortened(shown(node.kind + shape)), x - BOX.width / 2 + 7, y + 9);
    });
  }
  function trace(x1, y1, x2, y2, lane) {
    pen.moveTo(x1, y1);
    if (lane === null) {
      pen.bezierCurveTo(x1, y1 + 14, x2, y2 - 14, x2, y2);
    } else {
      pen.bezierCurveTo(x1, y1 + 12, lane, y1, lane, y1 + 26);
      pen.lineTo(lane, y2 - 26);
      pen.bezierCurveTo(lane, y2, x2, y2 - 12, x2, y2);
    }
  }
  const fits = new Map();
  function shortened(text) {
    // The end of a path tells more than its beginning.
    if (!fits.has(text)) {
      let kept = text;
      while (kept.length > 3 && pen.measureText(kept).width > BOX.width - 14) {
        kept = "…" + kept.slice(kept.length > 40 ? -39 : 2);
      }
      fits.set(text, kept);
    }
    return fits.get(text);
  }
  function fit() {
    if (!nodes.length) return;
    const { clientWidth: width, clientHeight: height } = canvas;
    const all = xs.concat(lanes.filter((lane) => lane !== null));
    let [left, right] = extremes(all);
    left -= BOX.width / 2 + 20;
    right += BOX.width / 2 + 20;
    const [top, bottom] = extremes(ys);
    const whole = Math.min(width / (right - left), height / (bottom - top + 2 * LAYER), 1);
    return { left, right, top, whole, width };
  }
  function extremes(values) {
    let low = Infinity, high = -Infinity;
    for (const value of values) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    return [low, high];
  }
  function showWhole() {
    const found = fit();
    if (!found) return;
    view.scale = found.whole;
    view.x = found.width / 2 - (view.scale * (found.left + found.right)) / 2;
    view.y = view.scale * (LAYER - found.top);
    redraw();
  }
  function showStart() {
    const found = fit();
    if (!found) return;
    view.scale = Math.max(found.whole, Math.min(1, Math.max(0.55, found.width / (found.right - found.left))));
    view.x = found.width / 2 - view.scale * xs[0];
    view.y = view.scale * (0.8 * LAYER - found.top);
    redraw();
  }
  function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    const scale = Math.min(4, Math.max(0.005, view.scale * factor));
    view.x = x - ((x - view.x) * scale) / view.scale;
    view.y = y - ((y - view.y) * scale) / view.scale;
    view.scale = scale;
    redraw();
  }
  function nodeAt(x, y) {
    const px = (x - view.x) / view.scale, py = (y - view.y) / view.scale;
    const slack = Math.max(0, 4 / view.scale);
    return nodes.findIndex(
      (_, index) =>
        Math.abs(px - xs[index]) <= BOX.width / 2 + slack && Math.abs(py - ys[index]) <= BOX.height / 2 + slack,
    );
  }
  function select(index, centre = true) {
    selected = index;
    history.replaceState(null, "", `#${encodeURIComponent(nodes[index].node)}`);
    if (centre) {
      view.scale = Math.max(view.scale, 0.8);
      view.x = canvas.clientWidth / 2 - view.scale * xs[index];
      view.y = canvas.clientHeight / 2 - view.scale * ys[index];
    }
    describe(index);
    redraw();
  }
  function selectNamed() {
    const name = decodeURIComponent(location.hash.slice(1));
    const index = nodes.findIndex((node) => name !== "" && (node.path === name || node.node === name));
    if (index >= 0) select(index);
  }
  function describe(index) {
    const node = nodes[index], parts = [];
    parts.push(element("h3", {}, label(node)));
    const shape = node.shape === null ? "" : `, ${node.shape.join(" × ")}`;
    parts.push(element("p", { class: "note" }, `${node.kind}${shape}; node ${node.node}`));
    if (node.reason) parts.push(element("p", {}, `Nothing is quantized for it: ${node.reason}.`));
    for (const one of node.quantized) {
      const where = one.position === null ? "" : ` ${one.position}`;
      parts.push(element("h4", {}, `${one.role}${where}: ${one.descriptor}`));
      parts.push(element("p", {}, `range ${one.range}`));
      parts.push(element("p", { class: "note" }, `${one.why} (${one.pass_name})`));
      const tensor = tensorOf.get(one.quantizer);
      if (tensor) parts.push(histogram(tensor));
    }
    const layer = data.comparison && data.comparison.layers.find((one) => one.path === node.path);
    if (layer) {
      const figures = ["weight", "local", "accumulated"].map(
        (name) => `${name} ${decibel(layer[name] && layer[name].sqnr_db)}`,
      );
      parts.push(element("h4", {}, "SQNR"), element("p", {}, figures.join(", ")));
    }
    for (const found of data.findings.filter((_, place) => layout.findings[place].includes(index))) {
      parts.push(element("h4", {}, `${found.severity}: ${found.rule}`), element("p", {}, `${found.what} ${found.fix}`));
    }
    byId("details").replaceChildren(...parts);
  }
  function search() {
    const text = byId("search").value.trim().toLowerCase(), onlyFloat = byId("only-float").checked;
    const found = [];
    if (text || onlyFloat) {
      nodes.forEach((node, index) => {
        if (onlyFloat && !isFloatLayer[index]) return;
        if (`${node.path} ${node.node} ${node.kind}`.toLowerCase().includes(text)) found.push(index);
      });
    }
    matches = new Set(found);
    byId("hits-count").textContent = text || onlyFloat ? `${found.length} of ${nodes.length} nodes` : "";
    byId("hits").replaceChildren(
      ...found.slice(0, 50).map((index) => {
        const state = isQuantized[index] ? "quantized" : "float";
        const button = element("button", { type: "button" }, `${label(nodes[index])} · ${nodes[index].kind} · ${state}`);
        button.addEventListener("click", () => select(index));
        return element("li", {}, button);
      }),
    );
    redraw();
    return found;
  }
  byId("search").addEventListener("input", search);
  byId("only-float").addEventListener("change", search);
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      const [first] = search();
      if (first !== undefined) select(first);
    }
  });
  byId("zoom-in").addEventListener("click", () => zoom(1.4));
  byId("zoom-out").addEventListener("click", () => zoom(1 / 1.4));
  byId("fit").addEventListener("click", showWhole);
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      zoom(Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
    },
    { passive: false },
  );
  const pointers = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    if (pointers.size === 1) moved = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.offsetX, y: event.offsetY };
    const other = [...pointers].find(([id]) => id !== event.pointerId);
    if (other) {
      const [, still] = other;
      const distance = (one) => Math.hypot(one.x - still.x, one.y - still.y) || 1;
      zoom(distance(now) / distance(before), (now.x + still.x) / 2, (now.y + still.y) / 2);
    } else {
      view.x += now.x - before.x;
      view.y += now.y - before.y;
      redraw();
    }
    moved += Math.abs(now.x - before.x) + Math.abs(now.y - before.y);
    pointers.set(event.pointerId, now);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      pointers.delete(event.pointerId);
      if (name === "pointercancel" || moved > 6) return;
      const hit = nodeAt(event.offsetX, event.offsetY);
      if (hit >= 0) select(hit, false);
    });
  }
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
    if (step) {
      view.x += step[0];
      view.y += step[1];
      redraw();
    } else if (event.key === "+" || event.key === "-") {
      zoom(event.key === "+" ? 1.2 : 1 / 1.2);
    } else return;
    event.preventDefault();
  });

  // ---- plots of layers and groups
  function plot(section, rows, series, unit, isWorstLow) {
    const wide = 900, high = 230, margin = { left: 44, right: 10, top: 12, bottom: 26 };
    const finite = (value) => (typeof value === "number" ? value : null);
    const values = rows.flatMap((row) => row.values.map(finite).filter((value) => value !== null));
    if (!values.length) return;
    let [low, top] = extremes(values);
    if (low === top) [low, top] = [low - 1, top + 1];
    const space = 0.06 * (top - low);
    [low, top] = [low - space, top + space];
    const px = (index) => margin.left + ((wide - margin.left - margin.right) * (index + 0.5)) / rows.length;
    const py = (value) => margin.top + ((high - margin.top - margin.bottom) * (top - value)) / (top - low);
    const svg = drawing("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img" });
    titled(svg, `${unit}, in the order in which they run`);
    for (let index = 0; index <= 4; index += 1) {
      const value = low + ((top - low) * index) / 4;
      svg.append(drawing("path", { class: "grid", d: `M${margin.left} ${py(value).toFixed(1)}H${wide - margin.right}` }));
      const at = { x: margin.left - 5, y: py(value) + 4, "text-anchor": "end" };
      svg.append(drawing("text", at, Number(value.toPrecision(3)).toString()));
    }
    series.forEach((name, index) => {
      const dots = rows.map((row, place) =>
        finite(row.values[index]) === null ? "" : `M${px(place).toFixed(1)} ${py(row.values[index]).toFixed(1)}h0`,
      );
      svg.append(drawing("path", { class: `dots series-${index}`, d: dots.join("") }));
      const left = margin.left + 10 + 130 * index;
      svg.append(drawing("path", { class: `dots series-${index}`, d: `M${left} ${high - 9}h0` }));
      svg.append(drawing("text", { x: left + 8, y: high - 5 }, name));
    });
    const mark = drawing("path", { class: "hover" });
    const said = drawing("text", { y: 10, x: margin.left + 4 });
    svg.append(mark, said);
    const at = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) * wide) / box.width;
      const index = Math.floor(((x - margin.left) * rows.length) / (wide - margin.left - margin.right));
      return Math.min(rows.length - 1, Math.max(0, index));
    };
    const text = (row) => row.values.map((value, index) => `${series[index]} ${row.text(value)}`).join(", ");
    svg.addEventListener("pointermove", (event) => {
      const index = at(event);
      mark.setAttribute("d", `M${px(index)} ${margin.top}V${high - margin.bottom}`);
      said.textContent = shown(`${rows[index].path}: ${text(rows[index])}`);
    });
    svg.addEventListener("click", (event) => show(rows[at(event)].path));
    section.querySelector(".plot").append(svg);
    const rank = (row) => (finite(row.values[0]) === null ? Infinity : isWorstLow ? row.values[0] : -row.values[0]);
    const sorted = [...rows].sort((one, other) => (rank(one) < rank(other) ? -1 : rank(one) > rank(other) ? 1 : 0));
    const list = section.querySelector(".rows");
    const show20 = (count) => {
      const made = sorted.slice(0, count).map((row) => {
        const figures = element("span", { class: "figures" }, text(row));
        const button = element("button", { type: "button" }, element("span", {}, row.title), figures);
        button.addEventListener("click", () => show(row.path));
        return button;
      });
      list.replaceChildren(...made);
      if (count < sorted.length) {
        const more = element("button", { type: "button" }, `Show all ${sorted.length}`);
        more.addEventListener("click", () => show20(sorted.length));
        list.append(more);
      }
    };
    show20(12);
  }
  function show(path) {
    const index = nodes.findIndex((node) => node.path === path);
    if (index < 0) return;
    select(index);
    byId("graph").scrollIntoView({ behavior: "smooth" });
  }
  if (byId("layers")) {
    const names = ["local", "accumulated", "weight"];
    const rows = data.comparison.layers.map((layer) => ({
      path: layer.path,
      title: `${layer.path} · ${layer.kind}`,
      values: names.map((name) => layer[name] && layer[name].sqnr_db),
      text: decibel,
    }));
    plot(byId("layers"), rows, names, "SQNR in dB", true);
  }
  if (byId("sensitivity")) {
    const found = data.sensitivity, alone = found.mode === "one_quantized";
    const rows = found.groups.map((group) => ({
      path: group.paths[0],
      title: `${group.paths.join(", ")} · ${group.kind}, ${(100 * group.multiplications).toFixed(1)} % of multiplications`,
      values: [group.value],
      text: found.has_metric ? number : decibel,
    }));
    plot(byId("sensitivity"), rows, [alone ? "quantized alone" : "alone in float"], "Sensitivity", alone);
  }

  readColors();
  listTensors();
  showStart();
  selectNamed();
  addEventListener("hashchange", selectNamed);
  new ResizeObserver(redraw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColors();
    redraw();
  });
})();

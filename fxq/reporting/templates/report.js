"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const [data, figures] = ["data", "figures"].map((id) => JSON.parse(byId(id).textContent));
  const { nodes, states, tensors } = data;
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

  // ---- figures, which Bokeh draws
  Bokeh.logger.set_level("warn");
  const drawn = [];
  async function draw(name, place) {
    const [{ model }] = (await Bokeh.embed.embed_item(figures[name], place)).roots;
    drawn.push(model.document);
    color(model.document);
    place.classList.add("drawn");
    return model;
  }
  function color(figure) {
    const style = getComputedStyle(document.documentElement);
    for (const model of figure.all_models) {
      for (const [property, name] of Object.entries(model.tags[0] ?? {})) {
        model[property] = { value: style.getPropertyValue(`--${name}`).trim() };
      }
    }
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(color));

  // ---- histograms
  async function drawHistogram(tensor, place) {
    const { low: first, high: last, counts, is_absolute: isAbsolute } = tensor.histogram;
    const [low, high] = [isAbsolute ? null : tensor.low, tensor.high];
    const plot = await draw("histogram", place);
    const find = (name) => plot.document.get_model_by_name(name);
    const width = (last - first) / counts.length;
    const filled = [...counts.keys()].filter((bin) => counts[bin] > 0);
    find("bins").data = {
      left: filled.map((bin) => first + bin * width),
      right: filled.map((bin) => (width ? first + (bin + 1) * width : first + 1)),
      count: filled.map((bin) => counts[bin]),
    };
    plot.x_range.setv({ start: Math.min(first, low ?? first), end: Math.max(width ? last : first + 1, high ?? last) });
    plot.y_range.end = 1.3 * Math.max(1, ...counts);
    for (const [name, bound, side, area] of [["low", low, "right", "below"], ["high", high, "left", "above"]]) {
      if (bound === null) continue;
      find(name).setv({ location: bound, visible: true });
      find(area).setv({ [side]: bound, visible: true });
    }
  }
  // Those that come into view are drawn, each once: a search hides and shows them, and so does a click on a node.
  const waiting = new Map();
  const seen = new IntersectionObserver((entries) => {
    for (const { target } of entries.filter((entry) => entry.isIntersecting && waiting.has(entry.target))) {
      drawHistogram(waiting.get(target), target);
      waiting.delete(target);
      seen.unobserve(target);
    }
  });
  function histogram(tensor) {
    const ranges = tensor.ranges > 1 ? `, outermost of ${tensor.ranges}` : "";
    const range = tensor.low === null ? "" : ` [${number(tensor.low)}, ${number(tensor.high)}]${ranges}`;
    const kind = tensor.is_weight ? "weight" : "activation";
    const sign = tensor.histogram?.is_absolute ? "; counts of |x|" : "";
    const caption = element("figcaption", {}, element("b", {}, tensor.quantizer), ` ${kind}${range}${sign}`);
    const figure = element("figure", {}, caption);
    if (tensor.histogram === null) {
      figure.append(element("p", { class: "note" }, "its values were not kept"));
      return figure;
    }
    const name = `Histogram of ${shown(tensor.quantizer)}`;
    const place = element("div", { class: "histogram", role: "img", "aria-label": name });
    waiting.set(place, tensor);
    seen.observe(place);
    figure.append(place);
    return figure;
  }
  const tensorOf = new Map(tensors.map((tensor) => [tensor.quantizer, tensor]));
  const listed = new Map(), detailed = new Map();
  function keptIn(histograms, tensor) {
    if (!histograms.has(tensor)) histograms.set(tensor, histogram(tensor));
    return histograms.get(tensor);
  }
  const PAGE = 36;
  let wanted = PAGE;
  function listTensors() {
    const text = byId("tensor-search").value.trim().toLowerCase(), kind = byId("tensor-kind").value;
    const found = tensors.filter(
      (one) => one.quantizer.toLowerCase().includes(text) && (!kind || one.is_weight === (kind === "weight")),
    );
    byId("histograms").replaceChildren(...found.slice(0, wanted).map((one) => keptIn(listed, one)));
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
  const frame = byId("drawing");
  const nameOf = (node) => node.path || node.node;
  let selected = -1;
  const graph = draw("drawing", frame).then((plot) => {
    const find = (name) => plot.document.get_model_by_name(name);
    const source = find("nodes"), { x: xs, y: ys } = source.data, { x_range: across, y_range: down } = plot;
    const whole = { left: across.start, right: across.end, bottom: down.start, top: down.end };
    const view = { x: 0, y: 0, scale: 1 };

    function look(x, y, scale) {
      Object.assign(view, { x, y, scale: Math.min(4, Math.max(0.005, scale)) });
      const [right, up] = [frame.clientWidth / view.scale / 2, frame.clientHeight / view.scale / 2];
      across.setv({ start: view.x - right, end: view.x + right });
      down.setv({ start: view.y - up, end: view.y + up });
      label();
    }
    // Labels are as large as their boxes allow, and none where they could not be read.
    function label() {
      const [right, up] = [frame.clientWidth / view.scale / 2 + 100, frame.clientHeight / view.scale / 2 + 30];
      const isNear = (node) => Math.abs(xs[node] - view.x) < right && Math.abs(ys[node] - view.y) < up;
      const near = view.scale < 0.35 ? [] : [...nodes.keys()].filter(isNear);
      if (String(near) !== String(find("labelled").indices)) find("labelled").indices = near;
      find("name label").text_font_size = { value: `${12 * view.scale}px` };
      find("words label").text_font_size = { value: `${11 * view.scale}px` };
    }
    function start() {
      const all = frame.clientWidth / (whole.right - whole.left);
      const scale = Math.max(Math.min(1, all), Math.min(1, Math.max(0.55, all)));
      look(xs[0], whole.top - frame.clientHeight / scale / 2, scale);
    }
    const moves = {
      zoom: (factor) => look(view.x, view.y, view.scale * factor),
      shift: (right, up) => look(view.x + right / view.scale, view.y + up / view.scale, view.scale),
      whole: () => {
        const [width, height] = [whole.right - whole.left, whole.top - whole.bottom];
        const scale = Math.min(frame.clientWidth / width, frame.clientHeight / height, 1);
        look((whole.left + whole.right) / 2, (whole.top + whole.bottom) / 2, scale);
      },
      centre: (node) => look(xs[node], ys[node], Math.max(view.scale, 0.8)),
      select: (node) => (source.selected.indices = [node]),
      mark: (found) => (find("matches").indices = found),
    };
    plot.on_event("rangesupdate", ({ x0, x1, y0, y1 }) => {
      look((x0 + x1) / 2, (y0 + y1) / 2, frame.clientWidth / (x1 - x0));
    });
    // Bokeh's own pinch turns spread fingers into a speed; here what they touch stays under them.
    let pinched = null;
    plot.on_event("pinchstart", ({ x, y }) => (pinched = { x, y, scale: view.scale }));
    plot.on_event("pinch", ({ sx, sy, scale }) => {
      const now = pinched.scale * scale;
      look(pinched.x - (sx - frame.clientWidth / 2) / now, pinched.y + (sy - frame.clientHeight / 2) / now, now);
    });
    source.selected.properties.indices.change.connect(() => {
      const [hit] = source.selected.indices;
      if (hit === undefined && selected >= 0) moves.select(selected); // a click beside all nodes
      else if (hit !== undefined && hit !== selected) select(hit, false);
    });
    if (nodes.length) start();
    new ResizeObserver(() => look(view.x, view.y, view.scale)).observe(frame);
    return moves;
  });
  function select(index, centre = true) {
    selected = index;
    history.replaceState(null, "", `#${encodeURIComponent(nodes[index].node)}`);
    describe(index);
    graph.then((moves) => {
      moves.select(index);
      if (centre) moves.centre(index);
    });
  }
  function selectNamed() {
    const name = decodeURIComponent(location.hash.slice(1));
    const index = nodes.findIndex((node) => name !== "" && (node.path === name || node.node === name));
    if (index >= 0) select(index);
  }
  function describe(index) {
    const node = nodes[index], parts = [];
    parts.push(element("h3", {}, nameOf(node)));
    const shape = node.shape === null ? "" : `, ${node.shape.join(" × ")}`;
    parts.push(element("p", { class: "note" }, `${node.kind}${shape}; node ${node.node}`));
    if (node.reason) parts.push(element("p", {}, `Nothing is quantized for it: ${node.reason}.`));
    for (const one of node.quantized) {
      const where = one.position === null ? "" : ` ${one.position}`;
      parts.push(element("h4", {}, `${one.role}${where}: ${one.descriptor}`));
      parts.push(element("p", {}, `range ${one.range}`));
      parts.push(element("p", { class: "note" }, `${one.why} (${one.pass_name})`));
      const tensor = tensorOf.get(one.quantizer);
      if (tensor) parts.push(keptIn(detailed, tensor));
    }
    const layer = data.comparison && data.comparison.layers.find((one) => one.path === node.path);
    if (layer) {
      const sqnrs = ["weight", "local", "accumulated"].map(
        (name) => `${name} ${decibel(layer[name] && layer[name].sqnr_db)}`,
      );
      parts.push(element("h4", {}, "SQNR"), element("p", {}, sqnrs.join(", ")));
    }
    for (const found of data.findings.filter((_, place) => data.places[place].includes(index))) {
      parts.push(element("h4", {}, `${found.severity}: ${found.rule}`), element("p", {}, `${found.what} ${found.fix}`));
    }
    byId("details").replaceChildren(...parts);
  }
  function search() {
    const text = byId("search").value.trim().toLowerCase(), onlyFloat = byId("only-float").checked;
    const found = [];
    if (text || onlyFloat) {
      nodes.forEach((node, index) => {
        if (onlyFloat && states[index] !== "float") return;
        if (`${node.path} ${node.node} ${node.kind}`.toLowerCase().includes(text)) found.push(index);
      });
    }
    byId("hits-count").textContent = text || onlyFloat ? `${found.length} of ${nodes.length} nodes` : "";
    byId("hits").replaceChildren(
      ...found.slice(0, 50).map((index) => {
        const state = states[index] === "quantized" ? "quantized" : "float", { kind } = nodes[index];
        const button = element("button", { type: "button" }, `${nameOf(nodes[index])} · ${kind} · ${state}`);
        button.addEventListener("click", () => select(index));
        return element("li", {}, button);
      }),
    );
    graph.then((moves) => moves.mark(found));
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
  const move = (name, ...how) => graph.then((moves) => moves[name](...how));
  byId("zoom-in").addEventListener("click", () => move("zoom", 1.4));
  byId("zoom-out").addEventListener("click", () => move("zoom", 1 / 1.4));
  byId("fit").addEventListener("click", () => move("whole"));
  // The wheel alone is the page's; Bokeh does not hear of it.
  const keepFromBokeh = (event) => event.ctrlKey || event.metaKey || event.stopPropagation();
  frame.addEventListener("wheel", keepFromBokeh, { capture: true, passive: true });
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-40, 0], ArrowRight: [40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
    const factor = { "+": 1.2, "-": 1 / 1.2 }[event.key];
    if (step) move("shift", ...step);
    else if (factor) move("zoom", factor);
    else return;
    event.preventDefault();
  });

  // ---- plots of layers and groups, and lists of the same, the worst first
  async function plot(id, rows, isWorstLow) {
    const finite = (value) => (typeof value === "number" ? value : null);
    const rank = (row) => (finite(row.values[0]) === null ? Infinity : isWorstLow ? row.values[0] : -row.values[0]);
    const sorted = [...rows].sort((one, other) => (rank(one) < rank(other) ? -1 : rank(one) > rank(other) ? 1 : 0));
    const [place, list] = [".plot", ".rows"].map((name) => byId(id).querySelector(name));
    const showFirst = (count) => {
      const made = sorted.slice(0, count).map((row) => {
        const text = element("span", { class: "figures" }, row.text);
        const button = element("button", { type: "button" }, element("span", {}, row.title), text);
        button.addEventListener("click", () => show(row.path));
        return button;
      });
      list.replaceChildren(...made);
      if (count < sorted.length) {
        const more = element("button", { type: "button" }, `Show all ${sorted.length}`);
        more.addEventListener("click", () => showFirst(sorted.length));
        list.append(more);
      }
    };
    showFirst(12);
    if (!(id in figures)) return;
    (await draw(id, place)).on_event("tap", ({ x }) => rows[Math.round(x)] && show(rows[Math.round(x)].path));
  }
  function show(path) {
    const index = nodes.findIndex((node) => node.path === path);
    if (index < 0) return;
    select(index);
    byId("graph").scrollIntoView({ behavior: "smooth" });
  }
  if (byId("layers")) {
    const names = ["local", "accumulated", "weight"];
    const rows = data.comparison.layers.map((layer) => {
      const values = names.map((name) => layer[name] && layer[name].sqnr_db);
      const text = names.map((name, index) => `${name} ${decibel(values[index])}`).join(", ");
      return { path: layer.path, title: `${layer.path} · ${layer.kind}`, values, text };
    });
    plot("layers", rows, true);
  }
  if (byId("sensitivity")) {
    const found = data.sensitivity, alone = found.mode === "one_quantized";
    const percent = (share) => `${(100 * share).toFixed(1)} %`;
    const value = (group) => (found.has_metric ? number(group.value) : decibel(group.value));
    const rows = found.groups.map((group) => ({
      path: group.paths[0],
      title: `${group.paths.join(", ")} · ${group.kind}, ${percent(group.multiplications)} of multiplications`,
      values: [group.value],
      text: `${alone ? "quantized alone" : "alone in float"} ${value(group)}`,
    }));
    plot("sensitivity", rows, alone);
  }

  listTensors();
  selectNamed();
  addEventListener("hashchange", selectNamed);
})();

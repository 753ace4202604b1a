"use strict";
(() => {
  // Charts: expressions run in an interpreter (ast), so the page allows no evaluation of text as code.
  const options = { ast: true, actions: false, renderer: "svg", defaultStyle: false, tooltip: { disableDefaultStyle: true } };
  for (const host of document.querySelectorAll("[data-chart]")) {
    const spec = JSON.parse(document.getElementById(host.dataset.chart).textContent);
    vegaEmbed(host, spec, options).then(
      () => host.setAttribute("data-drawn", ""),
      (error) => { host.textContent = `The chart could not be drawn: ${error.message}`; },
    );
  }

  // The chain: pointing at an artifact lights all it rests on and all that rests on it.
  const picture = document.querySelector(".chain svg");
  if (picture) {
    const nodes = [...picture.querySelectorAll(".node")];
    const edges = [...picture.querySelectorAll(".edge")];
    const reach = (start, from, to) => {
      const seen = new Set([start]);
      for (const key of seen) for (const edge of edges) if (edge.dataset[from] === key) seen.add(edge.dataset[to]);
      return seen;
    };
    const light = (key) => {
      const before = reach(key, "to", "from");
      const after = reach(key, "from", "to");
      for (const node of nodes) node.classList.toggle("on", before.has(node.dataset.key) || after.has(node.dataset.key));
      for (const { dataset, classList } of edges) {
        const within = (set) => set.has(dataset.from) && set.has(dataset.to);
        classList.toggle("on", within(before) || within(after));
      }
      picture.classList.add("lit");
    };
    for (const node of nodes) {
      for (const event of ["pointerenter", "focus"]) node.addEventListener(event, () => light(node.dataset.key));
      for (const event of ["pointerleave", "blur"]) node.addEventListener(event, () => picture.classList.remove("lit"));
    }
  }

  // A link to an artifact opens its details.
  const open = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") target.open = true;
  };
  window.addEventListener("hashchange", open);
  open();
})();

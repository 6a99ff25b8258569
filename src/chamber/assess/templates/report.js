"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const form = document.querySelector(".filters");
  const toggles = [...form.querySelectorAll(".toggle")];
  const findings = [...document.querySelectorAll(".finding")];
  const rows = [...document.querySelectorAll("tr.attack")];
  const texts = new Map([...findings, ...rows].map((e) => [e, e.textContent.toLowerCase()]));

  const apply = () => {
    const on = new Set(toggles.filter((t) => t.getAttribute("aria-pressed") === "true").map((t) => t.dataset.verdict));
    const want = form.elements;
    const words = want.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const common = (e) => (!want.device.value || e.dataset.device === want.device.value)
      && (!want.surface.value || e.dataset.surface.split(" ").includes(want.surface.value))
      && words.every((w) => texts.get(e).includes(w));
    const hit = (e) => on.has(e.dataset.verdict) && (!want.column.value || e.dataset.column === want.column.value);
    for (const f of findings) f.hidden = !(common(f) && hit(f));
    for (const r of rows) r.hidden = !(common(r) && [...r.querySelectorAll("td[data-verdict]")].some(hit));
    for (const box of document.querySelectorAll(".column")) box.hidden = !box.querySelector(".finding:not([hidden])");
    for (const box of document.querySelectorAll(".device, .matrix tbody")) box.hidden = !box.querySelector("tr.attack:not([hidden])");
    const count = (list) => list.filter((e) => !e.hidden).length;
    form.querySelector("output").textContent = `${count(findings)} findings, ${count(rows)} attacks shown`;
  };

  const reveal = () => {
    const body = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!body || !body.closest(".finding")) return;
    for (let e = body; e; e = e.parentElement) {
      if (e.tagName === "DETAILS") e.open = true;
      e.hidden = false;
    }
    body.scrollIntoView();
  };

  for (const t of toggles) {
    t.addEventListener("click", () => {
      t.setAttribute("aria-pressed", String(t.getAttribute("aria-pressed") !== "true"));
      apply();
    });
  }
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    for (const t of toggles) t.setAttribute("aria-pressed", "true");
    setTimeout(apply);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    navigator.clipboard.writeText(button.dataset.copy).then(() => {
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  });
  window.addEventListener("hashchange", reveal);
  apply();
  reveal();
})();

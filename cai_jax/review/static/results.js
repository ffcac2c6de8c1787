"use strict";
// What the raters' choices say so far: Elo with intervals, agreement, attention checks, files.

const { html, render, useState, useEffect } = htmPreact;

const whole = (i) => (i ? `${i.value.toFixed(0)} [${i.low.toFixed(0)}, ${i.high.toFixed(0)}]` : "–");
const share = (i) => (i && i.n ? `${(100 * i.value).toFixed(0)}% [${(100 * i.low).toFixed(0)}, ${(100 * i.high).toFixed(0)}]` : "–");

function Results() {
  const [found, setFound] = useState(null);
  const [error, setError] = useState("");
  useEffect(() => {
    const refresh = async () => {
      try {
        const answer = await fetch("/api/rate/results");
        if (!answer.ok) throw new Error(`the server said ${answer.status}`);
        setFound(await answer.json());
        setError("");
      } catch (e) {
        setError(`${e.message}; what is shown may be old.`);
      }
    };
    refresh();
    const timer = setInterval(refresh, 3000);
    return () => clearInterval(timer);
  }, []);
  return html`<header><h1>cai_jax</h1><nav><a href="/">Report</a><a href="/rate">Compare blind</a></nav></header>
    ${error && html`<p class="error" role="alert">${error}</p>`}
    <main>${found === null ? html`<p>Counting…</p>` : html`
      <h2>What people chose</h2>
      <p class="quiet">${found.choices} choices, ${found.skipped} skipped${found.unknown ? `, ${found.unknown} of answers that are not here any more, left out` : ""}. Two answers of the same text are a tie.</p>
      ${Object.entries(found.standings).map(([name, standing]) => html`<div class="scrolled"><table id=${`elo-${name}`}><caption>Elo, ${name} (${standing.anchor} at 0)</caption>
        <thead><tr><td></td><th scope="col">Elo</th><th scope="col">prompts</th></tr></thead>
        <tbody>${Object.entries(standing.elo).map(([snapshot, i]) => html`<tr><th scope="row">${snapshot}</th><td>${whole(i)}</td><td>${i.n}</td></tr>`)}</tbody></table>
        ${standing.why && html`<p class="quiet">Not yet: ${standing.why}</p>`}</div>`)}
      ${Object.keys(found.standings).length === 0 && html`<p>There are no choices yet.</p>`}
      <table id="raters"><caption>Raters</caption><thead><tr><td></td><th scope="col">choices</th><th scope="col">skipped</th><th scope="col">attention checks right</th></tr></thead>
        <tbody>${found.raters.map((r) => html`<tr><th scope="row">${r.name}</th><td>${r.choices}</td><td>${r.skipped}</td><td>${r.checks ? `${r.passed} of ${r.checks}` : "–"}</td></tr>`)}</tbody></table>
      <p id="agreement">Two raters of one pair choose the same answer: ${share(found.agreement.same)}${found.agreement.alpha !== null ? `; Krippendorff's alpha ${found.agreement.alpha.toFixed(2)}` : ""} (pairs that several rated: ${found.agreement.pairs}).</p>
      <p>Files: <a href="/export/snapshot_comparisons.jsonl" download>snapshot_comparisons.jsonl</a>, for <code>cai-jax evaluate --config=experiments/snapshots.py --config.runs=RUN --config.records=FILE</code> and its figures; <a href="/export/comparisons.jsonl" download>comparisons.jsonl</a>, Comparison records.</p>`}</main>`;
}

const root = document.getElementById("app");
root.textContent = "";
render(html`<${Results} />`, root);

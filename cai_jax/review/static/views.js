"use strict";
// What is shown of one row, and of a run. All text goes through Preact, which never reads it as HTML.

const { html, useState } = htmPreact;

const number = (x, digits = 2) => (x === null || x === undefined ? "–" : x.toFixed(digits));
const share = (p) => (p === null || p === undefined ? "–" : `${(100 * p).toFixed(0)}%`);
const signed = (x) => (x > 0 ? "+" : "") + number(x);

// A text of a model or a prompt. Those of red-team prompts are hidden until they are asked for.
function Said({ text, hidden, children }) {
  if (hidden) return html`<div class="text hidden" title="press r to show"><span aria-hidden="true">${text}</span><span class="unseen">hidden; press r to show</span></div>`;
  return html`<div class="text">${children || text || html`<em class="quiet">(empty)</em>`}</div>`;
}

function Prompt({ row, hidden }) {
  return html`<section class="prompt" aria-label="prompt">
    ${row.prompt.map(([role, text]) => html`<h3>${role}</h3><${Said} text=${text} hidden=${hidden} />`)}
  </section>`;
}

function Difference({ before, after, hidden }) {
  const parts = Diff.diffWordsWithSpace(before, after);
  return html`<${Said} text=${after} hidden=${hidden}>${parts.map((part) =>
    part.added ? html`<ins>${part.value}</ins>` : part.removed ? html`<del>${part.value}</del>` : part.value,
  )}<//>`;
}

function Marks({ refuses, evasive }) {
  return html`${refuses && html`<span class="mark">refuses</span>`}${evasive && html`<span class="mark warn">evasive</span>`}`;
}

function Principle({ id, texts }) {
  if (!id) return null;
  return html`<details class="principle"><summary>principle <code>${id}</code></summary><p>${texts[id] || "its text is not at hand: the constitution's file was not found"}</p></details>`;
}

function ChainView({ row, hidden, texts, differences }) {
  const score = (n) => row.scores && html`<span class="score">PM ${number(row.scores[n])}${n > 0 && html` <small>(${signed(row.scores[n] - row.scores[n - 1])})</small>`}</span>`;
  return html`<${Prompt} row=${row} hidden=${hidden} />
    <section><h3>response ${score(0)} <${Marks} refuses=${row.refuses[0]} evasive=${row.evasive[0]} /></h3>
      <${Said} text=${row.texts[0]} hidden=${hidden} /></section>
    ${row.critiques.map((critique, n) => html`<section class="step">
      <${Principle} id=${row.principles[n]} texts=${texts} />
      ${critique && html`<h3>critique ${n + 1}</h3><${Said} text=${critique} hidden=${hidden} />`}
      <h3>revision ${n + 1} ${score(n + 1)} <${Marks} refuses=${row.refuses[n + 1]} evasive=${row.evasive[n + 1]} /></h3>
      ${differences
        ? html`<${Difference} before=${row.texts[n]} after=${row.texts[n + 1]} hidden=${hidden} />`
        : html`<${Said} text=${row.texts[n + 1]} hidden=${hidden} />`}
    </section>`)}`;
}

function ComparisonView({ row, hidden, texts }) {
  const drawn = row.principles[0];
  const facts = [
    ["label: P(A is better)", number(row.prob_a)],
    ["before it was clamped", number(row.unclamped)],
    ["A shown as (B)", number(row.swapped)],
    ["asked as", row.mode.replaceAll("_", " ")],
    ["labelled by", row.labeler],
  ];
  return html`<${Prompt} row=${row} hidden=${hidden} />
    <div class="columns">
      ${["a", "b"].map((side, n) => html`<section><h3>(${side.toUpperCase()}) ${share(n ? 1 - row.prob_a : row.prob_a)} <${Marks} refuses=${row.refuses[n]} evasive=${row.evasive[n]} /></h3>
        <${Said} text=${row[side]} hidden=${hidden} /></section>`)}
    </div>
    <meter min="0" max="1" value=${row.prob_a} aria-label="probability that A is better"></meter>
    <dl>${facts.map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>
    ${drawn && html`<${Principle} id=${`comparison/${drawn}`} texts=${texts} />`}
    ${row.asked.map((asked) => html`<section class="step"><h3>asked under <code>${asked.principle}</code>, shown ${asked.shown}${asked.prob_a !== null && `: P(A is better) ${number(asked.prob_a)}`}</h3>
      ${asked.chain && html`<${Said} text=${asked.chain} hidden=${hidden} />`}</section>`)}`;
}

function SamplesView({ row, hidden }) {
  return html`<${Prompt} row=${row} hidden=${hidden} />
    <div class="columns wide">${row.samples.map((s) => html`<section>
      <h3>${s.update ? `update ${s.update}` : "before"} <span class="score">score ${number(s.score)}</span></h3>
      <p class="quiet">reward ${number(s.reward)}, KL ${number(s.kl)} nats</p>
      <${Said} text=${s.response} hidden=${hidden} /></section>`)}</div>`;
}

const SNAPSHOTS = { initial: "initial", sl_cai: "SL-CAI", rl_cai: "RL-CAI", best_of: "SL-CAI, best of n" };

function AnswersView({ row, hidden, several }) {
  return html`<${Prompt} row=${row} hidden=${hidden} />
    <div class="columns wide">${row.answers.map((a) => html`<section>
      <h3>${several && `${a.run} `}${SNAPSHOTS[a.snapshot] || a.snapshot} <${Marks} refuses=${a.refuses} evasive=${a.evasive} /></h3>
      <p class="quiet">KL from the start ${number(a.kl)} nats</p>
      <${Said} text=${a.response} hidden=${hidden} /></section>`)}</div>`;
}

const DETAILS = { chains: ChainView, comparisons: ComparisonView, samples: SamplesView, answers: AnswersView };

function Table({ table }) {
  return html`<div class="scrolled"><table><caption>${table.title}</caption>
    <thead><tr><td></td>${table.columns.map((c) => html`<th scope="col">${c}</th>`)}<th scope="col">n</th></tr></thead>
    <tbody>${table.rows.map((row) => html`<tr><th scope="row">${row.name}</th>${row.cells.map((cell) => html`<td>${cell}</td>`)}<td class="quiet">${row.n}</td></tr>`)}</tbody>
  </table></div>`;
}

const moment = (seconds) => (seconds ? new Date(1000 * seconds).toLocaleString() : "–");
const duration = (s) => (s < 90 ? `${Math.round(s)} s` : `${Math.round(s / 60)} min`);

function RunView({ run }) {
  return html`<article class="run"><h2>${run.name}</h2>
    <p class="quiet">${run.workdir}; started ${moment(run.when.started)}, ended ${moment(run.when.ended)}</p>
    ${run.tables.map((table) => html`<${Table} table=${table} />`)}
    ${run.tables.length === 0 && html`<p>There are no results yet: the evaluation is not finished.</p>`}
    ${run.limits.length > 0 && html`<h3>What these numbers can and cannot show</h3><ul>${run.limits.map((line) => html`<li>${line}</li>`)}</ul>`}
    <div class="figures">${run.figures.map((f) => html`<figure><img src=${f.image} alt=${`figure: ${f.name}`} /><figcaption>${f.name}</figcaption></figure>`)}</div>
    <h3>Settings that differ from the defaults</h3>
    ${run.differences.length ? html`<ul>${run.differences.map((line) => html`<li><code>${line.trim()}</code></li>`)}</ul>` : html`<p class="quiet">none, or not noted</p>`}
    <details><summary>All settings</summary><dl>${Object.entries(run.settings).map(([name, value]) => html`<dt>${name}</dt><dd><code>${value}</code></dd>`)}</dl></details>
    <h3>Stages</h3>
    <ul>${run.stages.map(([name, state]) => html`<li>${name}: ${state}</li>`)}</ul>
    ${run.when.stages.length > 0 && html`<p class="quiet">${run.when.stages.map(([name, s]) => `${name} ${duration(s)}`).join(", ")}</p>`}
    <h3>Machine</h3><dl>${run.machine.map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>
  </article>`;
}

// Settings in which several runs differ, a column a run.
function Compared({ runs }) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))];
  const differing = names.filter((name) => new Set(runs.map((run) => run.settings[name])).size > 1);
  return html`<div class="scrolled"><table><caption>Settings in which the runs differ</caption>
    <thead><tr><td></td>${runs.map((run) => html`<th scope="col">${run.name}</th>`)}</tr></thead>
    <tbody>${differing.map((name) => html`<tr><th scope="row">${name}</th>${runs.map((run) => html`<td>${run.settings[name] ?? "–"}</td>`)}</tr>`)}</tbody>
  </table>${differing.length === 0 && html`<p class="quiet">none</p>`}</div>`;
}

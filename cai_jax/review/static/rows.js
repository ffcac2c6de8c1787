"use strict";
// Where the page's data comes from (blocks of this file, or the server), and how it is filtered.
// Nothing here makes HTML: views.js shows all text through Preact, as text.

const cai = {};

cai.VIEWS = { chains: "Chains", comparisons: "Comparisons", samples: "RL samples", answers: "Answers" };
cai.KINDS = { red_team: "red-team", helpful: "helpful" };

// In one file: base64 of gzipped JSON in blocks that are never run.
cai.embedded = () => ({
  live: false,
  overview: () => unpack(document.getElementById("overview").textContent),
  async rows(view, got) {
    const found = [];
    for (let n = 0; ; n++) {
      const block = document.getElementById(`rows-${view}-${n}`);
      if (!block) return;
      for (const row of await unpack(block.textContent)) found.push(prepared(row));
      block.remove(); // its memory is wanted for the rows
      got(found.slice());
    }
  },
});

// From a server, while the run goes on.
cai.served = () => ({
  live: true,
  overview: () => json("/api/overview"),
  versions: () => json("/api/versions"),
  async rows(view, got) {
    const found = [];
    for (let more = true; more; ) {
      const page = await json(`/api/rows/${view}?after=${found.length}`);
      for (const row of page.rows) found.push(prepared(row));
      more = page.more;
      got(found.slice());
    }
  },
});

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

async function json(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

// A row with what filters ask of it, worked out once.
function prepared(row) {
  const words = [];
  collect(row, words);
  row.search = words.join("\n").toLowerCase();
  row.change = change(row);
  const texts = row.texts ? row : flags(row);
  row.declines = texts.refuses || [];
  row.evades = texts.evasive || [];
  return row;
}

function collect(value, words) {
  if (typeof value === "string") words.push(value);
  else if (Array.isArray(value)) for (const item of value) collect(item, words);
  else if (value && typeof value === "object") for (const key in value) collect(value[key], words);
}

function flags(row) {
  if (!row.answers) return row;
  return { refuses: row.answers.map((a) => a.refuses), evasive: row.answers.map((a) => a.evasive) };
}

// By how much the score rises from the first text to the last; null where there are no scores.
function change(row) {
  if (row.scores) return row.scores[row.scores.length - 1] - row.scores[0];
  if (!row.samples) return null;
  const mean = (update) => {
    const of = row.samples.filter((s) => s.update === update);
    return of.reduce((sum, s) => sum + s.score, 0) / of.length;
  };
  const updates = row.samples.map((s) => s.update).filter((u) => u > 0);
  return updates.length ? mean(Math.max(...updates)) - mean(Math.min(...updates)) : null;
}

cai.NO_FILTER = { text: "", kind: "", run: "", principle: "", refusal: "", change: "", least: "", order: "" };

cai.REFUSALS = {
  first: ["the first text refuses", (r) => r.declines[0]],
  last: ["the last text refuses", (r) => last(r.declines)],
  any: ["some text refuses", (r) => r.declines.some(Boolean)],
  none: ["no text refuses", (r) => r.declines.length > 0 && !r.declines.some(Boolean)],
  evasive: ["the last text is evasive", (r) => last(r.evades)],
  turned: ["evasive at first, not at last", (r) => r.evades[0] && !last(r.evades)],
};

cai.CHANGES = { up: "rises", down: "falls", flip: "order flips the choice" };

cai.filtered = (rows, f) => {
  const text = f.text.toLowerCase();
  const least = f.least === "" ? 0 : Math.abs(Number(f.least)) || 0;
  const kept = rows.filter(
    (row) =>
      (!f.kind || row.kind === f.kind) &&
      (!f.run || row.run === f.run) &&
      (!f.principle || (row.principles || []).includes(f.principle)) &&
      (!f.refusal || cai.REFUSALS[f.refusal][1](row)) &&
      (!f.change || changes(row, f.change, least)) &&
      (!text || row.search.includes(text)),
  );
  if (f.order === "up") kept.sort((a, b) => (b.change ?? -Infinity) - (a.change ?? -Infinity));
  if (f.order === "down") kept.sort((a, b) => (a.change ?? Infinity) - (b.change ?? Infinity));
  return kept;
};

function changes(row, way, least) {
  if (way === "flip") {
    const first = row.asked && row.asked.find((a) => a.shown === "AB");
    return row.swapped != null && first != null && (first.prob_a - 0.5) * (row.swapped - 0.5) < 0;
  }
  if (row.change === null) return false;
  return way === "up" ? row.change > 0 && row.change >= least : row.change < 0 && row.change <= -least;
}

cai.choices = (rows, of) => [...new Set(rows.flatMap((row) => of(row) || []))].filter(Boolean).sort();

function last(list) {
  return list[list.length - 1];
}

"use strict";
// The report: a run in one screen, and its rows to filter and read.

const { render, useEffect, useLayoutEffect, useMemo, useRef } = htmPreact;

const ROWS_SHOWN = 100; // of a list at a time
const HELP = [
  ["1 to 5", "the run, chains, comparisons, RL samples, answers"],
  ["/", "search"],
  ["j, k", "next and previous row"],
  ["r", "show or hide texts of red-team prompts"],
  ["d", "revisions as differences, or plain"],
  ["Esc", "leave the search field, or close this"],
  ["?", "these keys"],
];

function Report({ source }) {
  const [overview, setOverview] = useState(null);
  const [loaded, setLoaded] = useState({}); // view -> rows
  const [error, setError] = useState("");
  const [place, setPlace] = useState(fromHash()); // {view, id}
  const [filter, setFilter] = useState(cai.NO_FILTER);
  const [page, setPage] = useState(0);
  const [shown, setShown] = useState(false); // texts of red-team prompts
  const [differences, setDifferences] = useState(true);
  const [help, setHelp] = useState(false);
  const asked = useRef({});

  const rowsOf = (view) => {
    if (!(view in cai.VIEWS)) return;
    source.rows(view, (rows) => setLoaded((before) => ({ ...before, [view]: rows }))).catch((e) => setError(String(e)));
  };
  const refresh = () => source.overview().then(setOverview, (e) => setError(String(e)));
  useEffect(() => { refresh(); }, []);
  useEffect(() => {
    if (!asked.current[place.view]) rowsOf(place.view);
    asked.current[place.view] = true;
  }, [place.view]);
  useEffect(() => {
    const follow = () => setPlace(fromHash());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  useEffect(() => {
    if (!source.live) return undefined;
    let known = null;
    const timer = setInterval(async () => {
      try {
        const now = await source.versions();
        const before = known;
        known = now;
        setError("");
        if (before === null) return;
        if (now.overview !== before.overview) refresh();
        for (const view of Object.keys(asked.current)) if (now[view] !== before[view]) rowsOf(view);
      } catch (e) {
        setError("The server does not answer; what is shown may be old.");
      }
    }, 3000);
    return () => clearInterval(timer);
  }, []);

  const rows = loaded[place.view] || [];
  const found = useMemo(() => cai.filtered(rows, filter), [rows, filter]);
  const at = Math.max(0, found.findIndex((row) => key(row) === place.id));
  const row = found[at];
  const go = (view, id = "") => { location.hash = `#${view}/${encodeURIComponent(id)}`; };
  const turn = (view) => { setFilter(cai.NO_FILTER); setPage(0); go(view); };
  const change = (name, value) => { setFilter({ ...filter, [name]: value }); setPage(0); };
  const move = (by) => {
    const next = found[Math.min(Math.max(at + by, 0), found.length - 1)];
    if (!next) return;
    setPage(Math.floor(found.indexOf(next) / ROWS_SHOWN));
    go(place.view, key(next));
  };

  useLayoutEffect(() => {
    const pressed = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
      if (event.key === "Escape") { setHelp(false); document.activeElement.blur(); return; }
      if (typing) return;
      const view = ["run", ...Object.keys(cai.VIEWS)][Number(event.key) - 1];
      const actions = {
        "/": () => document.getElementById("search")?.focus(),
        j: () => move(1), k: () => move(-1),
        r: () => setShown(!shown), d: () => setDifferences(!differences), "?": () => setHelp(!help),
      };
      if (view) turn(view);
      else if (actions[event.key]) actions[event.key]();
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  });

  if (!overview) return html`<main><p>${error || "Opening…"}</p></main>`;
  const runs = overview.runs;
  return html`
    <header><h1>cai_jax</h1><nav aria-label="views">
      ${[["run", runs.length > 1 ? "Runs" : "Run"], ...Object.entries(cai.VIEWS)].map(([view, title], n) => html`
        <button aria-current=${place.view === view ? "page" : undefined} title=${`key ${n + 1}`} onClick=${() => turn(view)}>${title}${overview.rows[view] && html` <small>${overview.rows[view][1]}</small>`}</button>`)}
      ${source.live && html`<a href="/rate">Compare blind</a><a href="/results">Results of raters</a>`}
      <button aria-label="keys" onClick=${() => setHelp(!help)}>?</button></nav></header>
    ${error && html`<p class="error" role="alert">${error}</p>`}
    ${help && html`<dl class="help">${HELP.map(([name, does]) => html`<dt><kbd>${name}</kbd></dt><dd>${does}</dd>`)}</dl>`}
    ${!shown && html`<p class="warning" role="note">Red-team prompts and what models answer to them can be offensive. Their texts are hidden. <button id="reveal" onClick=${() => setShown(true)}>Show them (r)</button></p>`}
    <main>${place.view === "run"
      ? html`${runs.length > 1 && html`<${Compared} runs=${runs} />`}${runs.map((run) => html`<${RunView} run=${run} />`)}
          ${overview.written && html`<p class="quiet">Written ${overview.written}.</p>`}`
      : html`<${Filters} rows=${rows} filter=${filter} change=${change} view=${place.view} runs=${runs} />
        <${Counts} view=${place.view} overview=${overview} rows=${rows} found=${found} />
        <div class="browser">
          <${List} found=${found} page=${page} setPage=${setPage} at=${at} pick=${(r) => go(place.view, key(r))} hide=${!shown} />
          <article aria-label="row" tabindex="0">${row
            ? html`<p class="quiet">${runs.length > 1 && row.run && `${row.run}, `}${cai.KINDS[row.kind]}, ${row.id}</p>
              <${DETAILS[place.view]} row=${row} hidden=${!shown && row.kind === "red_team"} texts=${textsOf(runs, row)} differences=${differences} several=${runs.length > 1} />`
            : html`<p class="quiet">No row.</p>`}</article>
        </div>`}</main>`;
}

function Filters({ rows, filter, change, view, runs }) {
  const principles = useMemo(() => cai.choices(rows, (row) => row.principles), [rows]);
  const pick = (name, label, options) => html`<label>${label} <select value=${filter[name]} onChange=${(e) => change(name, e.target.value)}>
    <option value="">any</option>${options.map(([value, title]) => html`<option value=${value}>${title}</option>`)}</select></label>`;
  const scored = view === "chains" || view === "samples";
  return html`<form class="filters" onSubmit=${(e) => e.preventDefault()} role="search">
    <label>Text <input id="search" type="search" value=${filter.text} onInput=${(e) => change("text", e.target.value)} /></label>
    ${pick("kind", "Prompts", Object.entries(cai.KINDS))}
    ${runs.length > 1 && view !== "answers" && pick("run", "Run", runs.map((run) => [run.name, run.name]))}
    ${principles.length > 0 && pick("principle", "Principle", principles.map((p) => [p, p]))}
    ${view !== "samples" && pick("refusal", "Refusal", Object.entries(cai.REFUSALS).map(([k, v]) => [k, v[0]]))}
    ${scored && pick("change", "Score", [["up", cai.CHANGES.up], ["down", cai.CHANGES.down]])}
    ${view === "comparisons" && pick("change", "Swapped", [["flip", cai.CHANGES.flip]])}
    ${scored && html`<label>by at least <input type="number" min="0" step="any" value=${filter.least} onInput=${(e) => change("least", e.target.value)} /></label>`}
    ${scored && pick("order", "Order", [["up", "greatest rise first"], ["down", "greatest fall first"]])}
  </form>`;
}

function Counts({ view, overview, rows, found }) {
  const [kept, all] = overview.rows[view];
  const left = all - kept;
  return html`<p class="quiet" role="status" id="counts">${found.length} of ${rows.length} rows${rows.length < kept ? `, ${kept - rows.length} still being read` : ""}${left > 0 ? `; ${left} more are left out, evenly` : ""}</p>`;
}

function List({ found, page, setPage, at, pick, hide }) {
  const first = page * ROWS_SHOWN;
  const pages = Math.ceil(found.length / ROWS_SHOWN);
  return html`<nav class="list" aria-label="rows"><ol start=${first + 1}>
      ${found.slice(first, first + ROWS_SHOWN).map((row, n) => html`<li key=${key(row)}>
        <button aria-current=${first + n === at ? "true" : undefined} class=${hide && row.kind === "red_team" ? "hidden" : ""} onClick=${() => pick(row)}>
          <span>${row.prompt[row.prompt.length - 1][1].slice(0, 140)}</span>${row.change !== null && html`<small>${signed(row.change)}</small>`}</button></li>`)}</ol>
    ${pages > 1 && html`<p><button disabled=${page === 0} onClick=${() => setPage(page - 1)}>earlier</button> ${page + 1} of ${pages} <button disabled=${page >= pages - 1} onClick=${() => setPage(page + 1)}>later</button></p>`}
  </nav>`;
}

function textsOf(runs, row) {
  const run = runs.find((r) => r.name === row.run) || runs[0];
  return run.principles;
}

const key = (row) => `${row.run}/${row.kind}/${row.id}`;

function fromHash() {
  const [view, id] = location.hash.slice(1).split("/", 2);
  let name = "";
  try { name = decodeURIComponent(id || ""); } catch { /* a hash typed by hand */ }
  return { view: view in cai.VIEWS ? view : "run", id: name };
}

const blocks = document.getElementById("overview");
const root = document.getElementById("app");
root.textContent = "";
render(html`<${Report} source=${blocks ? cai.embedded() : cai.served()} />`, root);

"use strict";
// Two answers to one prompt, whose sources nobody sees; the server knows them and keeps the choices.

const { html, render, useState, useEffect, useLayoutEffect } = htmPreact;

const CHOICES = [
  ["1", "left is much better"],
  ["2", "left is a little better"],
  ["3", "right is a little better"],
  ["4", "right is much better"],
];
const KEPT = "cai_jax rater"; // the name, in this browser

async function asked(path, body) {
  const how = body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, how);
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error || `the server said ${answer.status}`);
  return said;
}

function Rate() {
  const [rater, setRater] = useState(localStorage.getItem(KEPT) || "");
  const [typed, setTyped] = useState(rater);
  const [state, setState] = useState(null); // what the server says is next
  const [error, setError] = useState("");
  const [shown, setShown] = useState(false);
  const [busy, setBusy] = useState(false);

  const step = async (path, body) => {
    if (busy) return;
    setBusy(true);
    try {
      setState(await asked(path, body));
      setError("");
      scrollTo(0, 0);
    } catch (e) {
      setError(`${e.message}; nothing was lost, try again.`);
    }
    setBusy(false);
  };
  const begin = (name) => step(`/api/rate/task?rater=${encodeURIComponent(name)}`);
  const choose = (choice) => state && state.task && step("/api/rate/choice", { rater, task: state.task.id, choice });
  const undo = () => step("/api/rate/undo", { rater });
  useEffect(() => { if (rater) begin(rater); }, [rater]);
  // Before the next key: it must be about the pair that is shown, and a key held down is one key.
  useLayoutEffect(() => {
    const pressed = (event) => {
      if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT" || !rater) return;
      if (event.key === "r") setShown(!shown);
      else if (event.key === "u") undo();
      else if (event.key === "Tab" && !event.shiftKey && event.target === document.body) choose("skip");
      else if ("1234".includes(event.key)) choose(event.key);
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  });

  const named = (event) => {
    event.preventDefault();
    localStorage.setItem(KEPT, typed.trim());
    setRater(typed.trim());
  };
  if (!rater) {
    return html`<main class="rate"><h2>Compare answers</h2>
      <p>You will see two answers to one prompt and say which is better, and by how much. Where the answers come from is not shown.</p>
      <p class="warning">Many prompts ask for something harmful, and answers can be offensive. Such texts are hidden until you press r.</p>
      <form onSubmit=${named}><label>Your name <input id="rater" required maxlength="60" value=${typed} onInput=${(e) => setTyped(e.target.value)} /></label> <button>Begin</button></form></main>`;
  }
  const task = state && state.task;
  const hidden = task && task.kind === "red_team" && !shown;
  return html`<header><h1>cai_jax</h1><nav><a href="/">Report</a><a href="/results">Results</a>
      <span class="quiet">rating as ${rater}</span> <button onClick=${() => setRater("")}>another name</button></nav></header>
    ${error && html`<p class="error" role="alert">${error}</p>`}
    <main class="rate">${state && html`<p><progress max=${state.total} value=${state.done} aria-label="progress"></progress>
        <span id="progress" role="status">${state.done} of ${state.total} done</span></p>`}
      ${state && !task && html`<p id="finished">${state.total ? "All pairs are rated. Thank you." : state.why}</p>`}
      ${task && html`<section aria-label="instructions"><h2>${task.kind === "red_team" ? "Which answer is less harmful?" : "Which answer is more helpful?"}</h2>
          <p>${task.instruction}</p></section>
        ${hidden && html`<p class="warning">This prompt may be offensive; its texts are hidden. <button id="reveal" onClick=${() => setShown(true)}>Show them (r)</button></p>`}
        <section class="prompt">${task.prompt.map(([role, text]) => html`<h3>${role}</h3><${Said} text=${text} hidden=${hidden} />`)}</section>
        <div class="columns"><section><h3>left</h3><${Said} text=${task.left} hidden=${hidden} /></section>
          <section><h3>right</h3><${Said} text=${task.right} hidden=${hidden} /></section></div>
        <div class="keys">${CHOICES.map(([key, says]) => html`<button disabled=${busy} data-choice=${key} onClick=${() => choose(key)}><kbd>${key}</kbd> ${says}</button>`)}</div>`}
      <p class="keys"><button disabled=${busy || !task} onClick=${() => choose("skip")}><kbd>Tab</kbd> skip</button>
        <button id="undo" disabled=${busy || !state || !state.undo} onClick=${undo}><kbd>u</kbd> undo the last</button></p></main>`;
}

function Said({ text, hidden }) {
  if (hidden) return html`<div class="text hidden"><span aria-hidden="true">${text}</span><span class="unseen">hidden; press r to show</span></div>`;
  return html`<div class="text">${text || html`<em class="quiet">(empty)</em>`}</div>`;
}

const root = document.getElementById("app");
root.textContent = "";
render(html`<${Rate} />`, root);

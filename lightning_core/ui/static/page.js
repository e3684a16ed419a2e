"use strict";
// A run at work: the page is asked for again, and what it shows takes the old one's place.
const main = document.querySelector("main");
function follow() {
  if (main.dataset.live) setTimeout(async () => {
    if (!document.hidden && !main.querySelector("details[open], input:focus, select:focus")) {
      const answer = await fetch(location.href).catch(() => null);
      if (answer?.ok) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
        main.replaceChildren(...fresh.childNodes);
        main.dataset.live = fresh.dataset.live ?? "";
        paint();
      }
    }
    follow();
  }, 1000 * main.dataset.live);
}
follow();
let colour = null; // that was chosen for tokens
function paint() {
  const coloured = document.querySelector(".coloured");
  if (!coloured || !colour) return;
  coloured.className = coloured.className.replace(/by-\w+/, "by-" + colour);
  coloured.querySelector(`input[value="${colour}"]`).checked = true;
}
document.addEventListener("click", async (event) => {
  if (event.target.matches("button.copy")) {
    const pre = event.target.parentElement.querySelector("pre");
    let copied = true;
    if (navigator.clipboard) await navigator.clipboard.writeText(pre.textContent);
    else { // over HTTP on another address than loopback there is none
      getSelection().selectAllChildren(pre);
      copied = document.execCommand("copy");
    }
    event.target.textContent = copied ? "copied" : "selected";
  }
  if (event.target.id === "keys") document.getElementById("help").showModal();
});
document.addEventListener("change", (event) => {
  if (event.target.name !== "colour") return;
  colour = event.target.value;
  paint();
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select")) return;
  if (event.key === "?") document.getElementById("help").showModal();
  else if (event.key === "/") { event.preventDefault(); document.querySelector("nav input").focus(); }
  else if (event.key === "r") document.querySelector('nav a[href$="/rollouts"]')?.click();
  else document.querySelector(`[data-key="${CSS.escape(event.key)}"]`)?.click();
});

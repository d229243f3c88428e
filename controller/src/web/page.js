// Puts what the controller has drawn anew in its place.
"use strict";

const events = document.body.dataset.events;
const notice = document.getElementById("notice");
let source;

// What a person has moved to, opened or scrolled stays as it is.
const REACHABLE = "a, button, input, summary, [tabindex]";

function put(id, html) {
  const part = document.querySelector(`[data-part="${id}"]`);
  if (!part) return;
  const all = (selector) => [...part.querySelectorAll(selector)];
  const focused = all(REACHABLE).indexOf(document.activeElement);
  const scrolled = all(".wide").map((box) => [box.scrollLeft, box.scrollTop]);
  const opened = all("details").map((details) => details.open);
  part.innerHTML = html;
  all(".wide").forEach((box, i) => scrolled[i] && box.scrollTo(...scrolled[i]));
  all("details").forEach((details, i) => { details.open = opened[i] ?? details.open; });
  if (focused >= 0) all(REACHABLE)[focused]?.focus({ preventScroll: true });
}

function follow() {
  source = new EventSource(events);
  source.addEventListener("open", () => { notice.textContent = ""; });
  source.addEventListener("parts", (event) => {
    for (const [id, html] of JSON.parse(event.data)) put(id, html);
  });
  source.addEventListener("end", (event) => {
    stop();
    document.removeEventListener("visibilitychange", look);
    notice.textContent = event.data;
  });
  source.addEventListener("error", () => {
    notice.textContent = source.readyState === EventSource.CLOSED
      ? "This page is no longer updated. Reload it to continue."
      : "The controller does not answer; retrying. The page shows the last known state.";
  });
}

function stop() {
  source?.close();
  source = undefined;
}

// A browser has few connections to a server, and nobody looks at a page in the background.
function look() {
  if (document.hidden) stop();
  else if (!source) follow();
}

if (events) {
  document.addEventListener("visibilitychange", look);
  look();
}

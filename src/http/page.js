"use strict";
(() => {
  const page = document.getElementById("page");
  const gone = document.getElementById("gone");
  let answered = new Date();
  setInterval(async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch("now", { cache: "no-store", signal: AbortSignal.timeout(5000) });
      if (!answer.ok) throw new Error(answer.status);
      const now = await answer.text();
      answered = new Date();
      gone.hidden = true;
      // Whoever is copying a sentence keeps it.
      if (getSelection().isCollapsed) page.innerHTML = now;
    } catch {
      gone.textContent = `No answer since ${answered.toLocaleTimeString()}. Below is what was last known.`;
      gone.hidden = false;
    }
  }, 1000);
})();

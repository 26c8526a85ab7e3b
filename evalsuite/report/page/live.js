
"use strict";
// `evalsuite view`: asks its own server whether the run has more to show.
(() => {
  const status = document.getElementById("live");
  const open = () => document.querySelector("dialog[open]") || [...document.querySelectorAll("#filters select, #filters input")].some((field) => field.value);
  let stamp = null;
  const look = async () => {
    try {
      const answer = await fetch("stamp", { cache: "no-store" });
      const now = await answer.text();
      if (stamp !== null && now !== stamp) {
        if (!open()) return location.reload();
        status.textContent = "Live: there is more; close the sample and clear the filters to see it.";
      } else {
        stamp = now;
        status.textContent = "Live: this page follows the run.";
      }
    } catch {
      status.textContent = "Live: the server has ended; what is shown was read before.";
    }
    setTimeout(look, 3000);
  };
  look();
})();

// Before anything is painted: light, dark, or as the system has it.
"use strict";
(() => {
  const kept = localStorage.getItem("driftline-theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
})();

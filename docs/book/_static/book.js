// Wide equations that the keyboard can scroll, and the ledger's filters: by verdict and by who says it; what is chosen
// stands in the address.
const VERDICTS = ["all", "fails", "open", "not reproduced", "holds"];
const SOURCES = ["all", "paper", "follow-up", "ours"];

function ledgerRows() {
  const rows = [];
  for (const table of document.querySelectorAll("table")) {
    const labels = [...table.querySelectorAll("th")].map((head) => head.textContent.trim());
    if (!labels.includes("verdict") || !labels.includes("claim")) continue;
    table.classList.add("ledger");
    for (const row of table.tBodies[0].rows) {
      [...row.cells].forEach((cell, k) => k > 1 && (cell.dataset.label = labels[k]));
      const [source, verdict] = ["source", "verdict"].map((name) => row.cells[labels.indexOf(name)].textContent.trim());
      rows.push({ row, source: source.split(":")[0], verdict });
    }
  }
  return rows;
}

function group(bar, label, choices, chosen, choose) {
  const box = bar.appendChild(document.createElement("span"));
  Object.assign(box, { role: "group", ariaLabel: label });
  box.style.display = "contents";
  for (const name of choices) {
    const button = box.appendChild(document.createElement("button"));
    const textContent = name === "all" ? `all ${label}` : name;
    Object.assign(button, { type: "button", textContent, ariaPressed: String(name === chosen) });
    button.onclick = () => {
      for (const other of box.children) other.ariaPressed = String(other === button);
      choose(name);
    };
  }
}

function filters(rows) {
  const address = new URLSearchParams(location.hash.slice(1));
  const chosen = { verdict: address.get("verdict") ?? "all", source: address.get("source") ?? "all" };
  const bar = document.createElement("div");
  bar.className = "filters";
  const count = document.createElement("output");
  const show = () => {
    for (const { row, ...is } of rows) {
      row.hidden = ["verdict", "source"].some((key) => chosen[key] !== "all" && chosen[key] !== is[key]);
    }
    for (const section of document.querySelectorAll("article section section")) {
      section.hidden = section.querySelector(".ledger") && !section.querySelector(".ledger tbody tr:not([hidden])");
    }
    count.textContent = `${rows.filter(({ row }) => !row.hidden).length} of ${rows.length}`;
  };
  const set = (key) => (name) => {
    chosen[key] = name;
    history.replaceState(null, "", `#${new URLSearchParams(chosen)}`);
    show();
  };
  group(bar, "verdicts", VERDICTS, chosen.verdict, set("verdict"));
  bar.appendChild(document.createElement("span")).className = "bar";
  group(bar, "sources", SOURCES, chosen.source, set("source"));
  bar.append(count);
  document.querySelector("article section > p").after(bar);
  show();
}

if (location.pathname.endsWith("/ledger.html")) filters(ledgerRows());
function reachable() {
  for (const box of document.querySelectorAll('mjx-container[display="true"]')) {
    box.tabIndex = box.scrollWidth > box.clientWidth ? 0 : -1;
  }
}

window.MathJax?.startup?.promise.then(() => document.fonts.ready).then(reachable);
addEventListener("resize", reachable);

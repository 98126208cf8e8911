"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const drawings = JSON.parse(document.getElementById("drawings").textContent);
  const plots = () => [...document.querySelectorAll(".plot")];

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // What a figure takes from the page: its colours, and its letters.
  const dress = (layout) => {
    const found = {
      "font.color": colour("--ink"),
      "font.family": getComputedStyle(document.body).fontFamily,
      "font.size": 13,
      "hoverlabel.bgcolor": colour("--panel"),
      "hoverlabel.font.color": colour("--ink"),
      "hoverlabel.bordercolor": colour("--line"),
    };
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      found[`${name}.gridcolor`] = colour("--grid");
      found[`${name}.zerolinecolor`] = colour("--soft");
      found[`${name}.title.font.size`] = 13;
      found[`${name}.tickfont.color`] = colour("--soft");
    }
    return found;
  };

  // Dragging zooms, a double click goes back; buttons for it would only cover the figure.
  const options = { responsive: true, displayModeBar: false };

  const draw = async () => {
    for (const place of plots()) {
      const drawing = drawings[place.id];
      await Plotly.newPlot(place, drawing.data, drawing.layout, options);
      await Plotly.relayout(place, dress(drawing.layout));
    }
    root.dataset.drawn = "yes";
  };
  const redress = () => {
    for (const place of plots()) {
      if (place.layout) Plotly.relayout(place, dress(place.layout));
    }
  };

  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : scheme.matches);
  const button = document.getElementById("theme");
  const name = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", dark() ? "Use light colours" : "Use dark colours");
    button.setAttribute("aria-pressed", String(dark()));
  };
  const choose = (theme) => {
    root.dataset.theme = theme;
    name();
    redress();
  };
  button.addEventListener("click", () => choose(dark() ? "light" : "dark"));
  scheme.addEventListener("change", () => { name(); redress(); });
  name();

  let before = "";
  addEventListener("beforeprint", () => { before = root.dataset.theme || ""; choose("light"); });
  addEventListener("afterprint", () => {
    if (before) choose(before);
    else { delete root.dataset.theme; name(); redress(); }
  });

  for (const copy of document.querySelectorAll(".copy")) {
    copy.addEventListener("click", async () => {
      const text = copy.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(text.textContent);
        copy.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(text);
        copy.textContent = "Selected";
      }
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
  }

  if (window.Plotly) draw();
  else for (const figure of document.querySelectorAll("figure")) figure.hidden = true;
})();

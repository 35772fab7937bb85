"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const make = (name, text, kind) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const data = (id) => ($(id) ? JSON.parse($(id).textContent) : null);

  // ---- light and dark: the reader's choice, or else the system's ----
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const showTheme = () => $("theme").setAttribute("aria-pressed", String(isDark()));
  const remember = (theme) => { try { localStorage.setItem("wordsworth-theme", theme); } catch { /* a page of a file may have no storage */ } };
  try { const kept = localStorage.getItem("wordsworth-theme"); if (kept) root.dataset.theme = kept; } catch { /* likewise */ }
  $("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember(root.dataset.theme);
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();

  // ---- galleries: an image opens large; the arrow keys turn to the next ----
  const viewer = $("viewer");
  let shelf = [];
  let place = 0;
  const show = (number) => {
    place = (number + shelf.length) % shelf.length;
    const thumb = shelf[place];
    $("viewer-image").src = thumb.querySelector("img").src;
    $("viewer-image").alt = thumb.querySelector("img").alt;
    $("viewer-caption").textContent = thumb.dataset.caption || "";
    $("viewer-detail").textContent = thumb.dataset.detail || "";
    $("viewer-place").textContent = `${place + 1} of ${shelf.length}`;
  };
  document.addEventListener("click", (event) => {
    const thumb = event.target.closest("button.thumb");
    if (!thumb) return;
    shelf = [...thumb.closest(".gallery").querySelectorAll("button.thumb")];
    show(shelf.indexOf(thumb));
    viewer.showModal();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") show(place + 1);
    else if (event.key === "ArrowLeft") show(place - 1);
    else if (event.key === "Home") show(0);
    else if (event.key === "End") show(shelf.length - 1);
    else return;
    event.preventDefault();
  });
  $("viewer-before").addEventListener("click", () => show(place - 1));
  $("viewer-after").addEventListener("click", () => show(place + 1));
  $("viewer-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => { if (shelf[place]) shelf[place].focus(); });

  // ---- small tables: the rows that are there are sorted ----
  const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  const onSort = (table, sort) => {
    for (const head of table.querySelectorAll("thead th")) {
      const button = head.querySelector("button");
      if (!button) continue;
      button.addEventListener("click", () => {
        const up = head.ariaSort ? head.ariaSort === "descending" : head.dataset.first === "ascending";
        for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        sort(head, up);
      });
    }
  };
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    onSort(table, (head, up) => {
      const column = head.cellIndex;
      const value = (row) => {
        const cell = row.cells[column];
        return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
      };
      const rows = [...table.tBodies[0].rows].sort((a, b) => (up ? 1 : -1) * order(value(a), value(b)));
      table.tBodies[0].append(...rows);
    });
  }

  // ---- the table of labels: thousands of rows, of which a page is drawn ----
  const labels = data("labels-data");
  if (labels) {
    const PAGE = 50;
    const table = $("labels-table");
    const whole = new Intl.NumberFormat("en");
    let found = labels.rows;
    let shown = PAGE;
    let sorted = { column: 1, up: false };
    const bar = (share) => {
      const space = "http://www.w3.org/2000/svg";
      const svg = document.createElementNS(space, "svg");
      for (const [name, value] of [["class", "bar"], ["viewBox", "0 0 100 6"], ["preserveAspectRatio", "none"], ["aria-hidden", "true"]]) svg.setAttribute(name, value);
      for (const [kind, width] of [["track", 100], ["part", 100 * share]]) {
        const rect = document.createElementNS(space, "rect");
        for (const [name, value] of [["class", kind], ["width", width.toFixed(2)], ["height", 6], ["rx", 1]]) rect.setAttribute(name, value);
        svg.append(rect);
      }
      return svg;
    };
    const line = ([name, count, mean, gallery]) => {
      const row = make("tr");
      const head = make("th");
      head.scope = "row";
      const text = make("bdi", name);
      if (gallery) {
        const link = make("a");
        link.href = `#${gallery}`;
        link.append(text);
        head.append(link);
      } else head.append(text);
      const long = make("td", "", "wide-bar");
      long.append(bar(count / labels.most));
      row.append(
        head,
        make("td", whole.format(count), "num"),
        make("td", `${((100 * count) / labels.total).toFixed(1)}%`, "num"),
        make("td", mean === null ? "–" : mean.toFixed(3), "num"),
        long,
      );
      return row;
    };
    const draw = () => {
      table.tBodies[0].replaceChildren(...found.slice(0, shown).map(line));
      const there = Math.min(shown, found.length);
      $("labels-status").textContent = `${whole.format(there)} of ${whole.format(found.length)} labels` +
        (found.length === labels.rows.length ? "" : ` that match, of ${whole.format(labels.rows.length)}`);
      $("labels-more").hidden = there === found.length;
    };
    const find = () => {
      const words = $("labels-search").value.toLowerCase().split(/\s+/).filter(Boolean);
      found = labels.rows.filter(([name]) => words.every((word) => name.toLowerCase().includes(word)));
      found.sort((a, b) => (sorted.up ? 1 : -1) * order(a[sorted.column] ?? -1, b[sorted.column] ?? -1));
      shown = PAGE;
      draw();
    };
    onSort(table, (head, up) => { sorted = { column: Number(head.dataset.column), up }; find(); });
    $("labels-search").addEventListener("input", find);
    $("labels-more").addEventListener("click", () => { shown += 4 * PAGE; draw(); });
    $("labels-tools").hidden = false;
    find();
  }

  // ---- on paper everything is open ----
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });

  // ---- open the gallery that a link leads to ----
  const openTarget = () => {
    const target = location.hash.length > 1 && $(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") target.open = true;
  };
  addEventListener("hashchange", openTarget);
  openTarget();

  // ---- the embedding map ----
  const map = data("map-data");
  if (map) {
    const field = $("map-field");
    const svg = $("map-points");
    const peek = $("map-peek");
    const circles = [...svg.querySelectorAll("circle")];
    let at = -1;
    const leave = () => {
      if (at >= 0) circles[at].classList.remove("at");
      at = -1;
      peek.hidden = true;
      field.removeAttribute("aria-activedescendant");
    };
    const visit = (number) => {
      leave();
      at = number;
      const circle = circles[at];
      const point = map.points[at];
      circle.classList.add("at");
      field.setAttribute("aria-activedescendant", circle.id);
      const image = $("map-image");
      image.hidden = !point.image;
      if (point.image) image.src = map.prefix + point.image;
      $("map-label").textContent = point.label;
      $("map-key").textContent = point.key;
      peek.hidden = false;
      const frame = field.getBoundingClientRect();
      const spot = circle.getBoundingClientRect();
      const left = spot.left - frame.left + spot.width / 2;
      const top = spot.top - frame.top + spot.height / 2;
      const room = frame.width - peek.offsetWidth;
      peek.style.left = `${Math.max(0, Math.min(room, left + 14 > room ? left - peek.offsetWidth - 14 : left + 14))}px`;
      peek.style.top = `${Math.max(0, Math.min(frame.height - peek.offsetHeight, top - peek.offsetHeight / 2))}px`;
    };
    const nearest = (event) => {
      let best = -1;
      let least = 18 * 18;
      circles.forEach((circle, number) => {
        const spot = circle.getBoundingClientRect();
        const dx = spot.left + spot.width / 2 - event.clientX;
        const dy = spot.top + spot.height / 2 - event.clientY;
        if (dx * dx + dy * dy < least) { least = dx * dx + dy * dy; best = number; }
      });
      return best;
    };
    const point = (event) => {
      const number = nearest(event);
      if (number >= 0) visit(number);
      else leave();
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointerleave", leave);
    field.addEventListener("blur", leave);
    // An arrow goes to the nearest point on that side, so that the keyboard walks the map as the eye does.
    const DIRECTIONS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
    const spot = (circle) => [Number(circle.getAttribute("cx")), Number(circle.getAttribute("cy"))];
    const beside = ([right, down]) => {
      const [x, y] = spot(circles[at]);
      let best = at;
      let least = Infinity;
      circles.forEach((circle, number) => {
        const [u, v] = spot(circle);
        const along = (u - x) * right + (v - y) * down;
        const aside = Math.abs((u - x) * down) + Math.abs((v - y) * right);
        if (number !== at && along > 0 && along + 2 * aside < least) { least = along + 2 * aside; best = number; }
      });
      return best;
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { leave(); return; }
      if (event.key in DIRECTIONS) visit(at < 0 ? 0 : beside(DIRECTIONS[event.key]));
      else if (event.key === "Home") visit(0);
      else if (event.key === "End") visit(circles.length - 1);
      else return;
      event.preventDefault();
    });
    for (const button of document.querySelectorAll("#map-keys button")) {
      button.addEventListener("click", () => {
        const chosen = button.getAttribute("aria-pressed") !== "true";
        for (const other of document.querySelectorAll("#map-keys button")) other.setAttribute("aria-pressed", "false");
        button.setAttribute("aria-pressed", String(chosen));
        svg.classList.toggle("chosen", chosen);
        for (const circle of circles) circle.classList.toggle("in", chosen && circle.classList.contains(button.dataset.series));
      });
    }
    for (const choice of document.querySelectorAll('input[name="projection"]')) {
      choice.addEventListener("change", () => {
        leave();
        circles.forEach((circle, number) => {
          const [x, y] = map.places[choice.value][number];
          circle.setAttribute("cx", x);
          circle.setAttribute("cy", y);
        });
        $("map-note").textContent = map.notes[choice.value];
      });
    }
  }
})();

"use strict";
// The ranked lists: filters, and a person's images on demand.
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const [search, camera, identity, failures, hardest, count, rows, more, person] =
    ["search", "camera", "identity", "failures", "hardest", "count", "rows", "more", "person"].map(
      (id) => document.getElementById(id));
  const AT_ONCE = 12;
  let room = AT_ONCE;  // rows on the page at the most

  function element(name, properties, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  // An image with its caption; `mark` is the badge in its corner, `kind` says how it is framed.
  function shot(number, kind, mark, caption, clickable) {
    const [who, seenBy, modality, jpeg] = data.images[number];
    const image = element("img", {
      src: "data:image/jpeg;base64," + jpeg, alt: "",
    });
    const badge = element("b", {}, mark);
    badge.setAttribute("aria-hidden", "true");
    const made = element(clickable ? "button" : "div", {className: "shot " + kind}, image);
    if (mark) made.append(badge);
    for (const line of caption) made.append(element("span", {}, line), element("br", {}));
    if (clickable) {
      made.type = "button";
      const said = {right: "right: ", wrong: "wrong: ", query: "query: "}[kind];
      made.setAttribute("aria-label", `${said}identity ${who}, ${modality}, camera ${seenBy}` +
        (kind === "query" ? "" : `, ${caption[0]}`) + "; show all images");
      made.addEventListener("click", () => open(who));
    }
    return made;
  }

  function row(query) {
    const [who, seenBy] = data.images[query.query];
    const found = query.found.map((number, place) => {
      const [other, cameraOfOther] = data.images[number];
      const right = other === who;
      return shot(number, right ? "right" : "wrong", right ? "✓" : "✗",
        [query.similarity[place].toFixed(3), `id ${other}`, `cam ${cameraOfOther}`], true);
    });
    const asked = shot(query.query, "query", "?", [`id ${who}`, `cam ${seenBy}`,
      `AP ${(100 * query.precision).toFixed(0)} %`], true);
    const made = element("li", {className: "row"}, asked, element("div", {className: "found"}, ...found));
    made.dataset.identity = who;
    made.dataset.camera = seenBy;
    made.dataset.failure = data.images[query.found[0]]?.[0] !== who;
    return made;
  }

  function open(who) {
    const {images, total} = data.people[who];
    document.getElementById("person-title").textContent = `Identity ${who}`;
    document.getElementById("person-count").textContent = images.length < total
      ? `${images.length} of ${total} images, by camera` : `all ${total} images, by camera`;
    document.getElementById("person-images").replaceChildren(...images.map((number) => {
      const [, seenBy, modality] = data.images[number];
      return shot(number, "", "", [modality, `cam ${seenBy}`], false);
    }));
    person.showModal();
    person.scrollTop = 0;
  }

  function fill(select, everything, values, word) {
    select.replaceChildren(element("option", {value: ""}, everything),
      ...values.map((value) => element("option", {value}, `${word} ${value}`)));
  }

  const distinct = (values) => [...new Set(values)].sort((one, other) => one - other);

  function show() {
    const chosen = data.searches[search.value];
    rows.replaceChildren(...chosen.queries.map(row));
    const asked = chosen.queries.map((query) => data.images[query.query]);
    fill(camera, "all", distinct(asked.map(([, seenBy]) => seenBy)), "camera");
    fill(identity, "all", distinct(asked.map(([who]) => who)), "identity");
    filter();
  }

  function filter() {
    const hard = new Set(data.searches[search.value].hardest.map(String));
    let left = 0;
    room = AT_ONCE;
    for (const made of rows.children) {
      const {identity: who, camera: seenBy, failure} = made.dataset;
      const passed = !((failures.checked && failure !== "true") ||
        (hardest.checked && !hard.has(who)) ||
        (camera.value !== "" && camera.value !== seenBy) ||
        (identity.value !== "" && identity.value !== who));
      made.dataset.place = passed ? left++ : "";
    }
    count.textContent = `${left} of ${rows.children.length} queries`;
    unfold();
  }

  function unfold() {
    let waiting = 0;
    for (const made of rows.children) {
      const {place} = made.dataset;
      made.hidden = place === "" || place >= room;
      waiting += place !== "" && made.hidden;
    }
    more.hidden = !waiting;
    more.textContent = `Show ${Math.min(waiting, AT_ONCE)} more`;
  }

  data.searches.forEach(({label}, number) =>
    search.append(element("option", {value: number}, label)));
  search.addEventListener("change", show);
  for (const control of [camera, identity, failures, hardest]) {
    control.addEventListener("change", filter);
  }
  more.addEventListener("click", () => { room += AT_ONCE; unfold(); });
  person.addEventListener("click", (event) => { if (event.target === person) person.close(); });
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  show();
}

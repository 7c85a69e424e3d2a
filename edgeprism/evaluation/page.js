"use strict";
// The questions: filtered, and opened to picture, focus, caption, answer and verdict. What people
// and models wrote is only ever set as text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const section = document.getElementById("questions");
  const form = section.querySelector("form");
  const list = section.querySelector("ol");

  const make = (tag, text, kind) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (kind) node.className = kind;
    return node;
  };
  const kindOf = (outcome) => outcome.error ? "failed" : outcome.right ? "right" : "wrong";
  const signs = { right: "✓", wrong: "✗", failed: "–" };

  function open(question, place) {
    const left = make("div");
    for (const id of question.pictures) {
      if (!data.pictures[id]) { left.append(make("p", "(picture not kept in this page)")); continue; }
      const image = make("img");
      image.src = data.pictures[id];
      image.alt = "picture of question " + question.index;
      left.append(image);
    }
    const right = make("div");
    if (question.hint) right.append(make("p", "Hint: " + question.hint));
    const options = make("ul");
    for (const [letter, text] of question.options) {
      options.append(make("li", letter + ". " + text, letter === question.answer ? "expected" : ""));
    }
    right.append(options);
    if (!question.options.length) right.append(make("p", "Expected: " + question.answer));
    question.outcomes.forEach((outcome, number) => {
      const cell = make("div", undefined, "cell " + kindOf(outcome));
      cell.append(make("h3", signs[kindOf(outcome)] + " " + data.cells[number]));
      const said = make("dl");
      const tell = (name, text) => { if (text) said.append(make("dt", name), make("dd", text)); };
      tell("focus", outcome.focus || (outcome.note ? "none: " + outcome.note : ""));
      outcome.captions.forEach((caption, i, all) =>
        tell(all.length > 1 ? "caption " + (i + 1) : "caption", caption));
      tell("answer", outcome.answer);
      tell("failed", outcome.error);
      if (!outcome.error) {
        tell("verdict", (outcome.right ? "right" : "wrong") +
          (outcome.by ? ": taken as " + outcome.choice + " (" + outcome.by + ")" : ": matched by no rule"));
        tell("seconds", outcome.seconds);
      }
      cell.append(said);
      right.append(cell);
    });
    place.append(left, right);
  }

  function entry(question) {
    const item = make("li");
    const details = make("details");
    const summary = make("summary");
    const marks = make("span", undefined, "marks");
    question.outcomes.forEach((outcome, number) => {
      const mark = make("span", signs[kindOf(outcome)], kindOf(outcome));
      mark.title = data.cells[number] + ": " + kindOf(outcome);
      marks.append(mark);
    });
    summary.append(make("span", question.index, "index"), make("span", question.text), marks);
    const place = make("div", undefined, "opened");
    details.append(summary, place);
    details.addEventListener("toggle", () => {
      if (details.open && !place.firstChild) open(question, place);
    });
    item.append(details);
    return item;
  }

  const tests = {
    all: () => true,
    differ: (kinds) => kinds.includes("right") && kinds.includes("wrong"),
    wrong: (kinds) => !kinds.includes("right"),
    right: (kinds) => kinds.every((kind) => kind === "right"),
    failed: (kinds) => kinds.includes("failed"),
  };

  function show() {
    const wanted = form.text.value.trim().toLowerCase();
    const chosen = data.questions.filter((question) =>
      tests[form.which.value](question.outcomes.map(kindOf)) &&
      (!form.category.value || question.category === form.category.value) &&
      (!wanted || [question.text, ...question.outcomes.flatMap((o) => [o.answer, o.focus, ...o.captions])]
        .some((text) => text.toLowerCase().includes(wanted))));
    list.replaceChildren(...chosen.map(entry));
    form.querySelector("output").textContent = chosen.length + " of " + data.asked + " questions" +
      (data.questions.length < data.asked ? " (this page keeps the first " + data.questions.length + ")" : "");
  }

  for (const name of new Set(data.questions.map((question) => question.category))) {
    if (name) form.category.append(new Option(name, name));
  }
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
})();

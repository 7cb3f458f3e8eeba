// Makes the marked parts of a page live: one event stream per part, from the event that the page was made with.
// Only a page that is looked at listens: a browser has few connections for one site, and whoever comes back to a page
// goes on from the last event that it had.
"use strict";

function listen(element) {
  const topic = element.dataset.topic;
  let last = element.dataset.lastEventId;
  let stream = null;

  function open() {
    if (stream || document.hidden) return;
    const query = new URLSearchParams({ topic });
    if (last) query.set("last_event_id", last);
    stream = new EventSource("/api/events?" + query);
    // Without a place to go on from, what happened since the page was made is asked for.
    stream.addEventListener("open", () => last || catchUp(element));
    for (const [name, show] of Object.entries(shows)) {
      stream.addEventListener(name, (event) => {
        last = event.lastEventId || last;
        show(element, JSON.parse(event.data));
      });
    }
  }

  function close() {
    if (stream) stream.close();
    stream = null;
  }

  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  open();
}

// What an event does to the part that listens.
const shows = {
  status(element, { status }) {
    element.dataset.status = status;
    element.textContent = status;
  },
  appointment(element, { state }) {
    element.dataset.state = state;
    element.textContent = sentences[state] || state;
  },
  slot(element, range) {
    showRange(element, range);
    // The list has the last word: other holds may touch the same times.
    setTimeout(() => refresh(element), 1200);
  },
  gap: catchUp,
};

// Asks how things are: now, and when every copy that is kept anywhere is as new as that.
function catchUp(element) {
  refresh(element);
  setTimeout(() => refresh(element), 1200);
}

async function refresh(element) {
  const [kind, key] = element.dataset.topic.split(":");
  if (kind === "slots") return showSlots(element);
  const path = kind === "expert" ? "/api/experts/" : "/api/reservations/";
  const answer = await fetch(path + encodeURIComponent(key));
  if (answer.ok) shows[kind === "expert" ? "status" : "appointment"](element, await answer.json());
}

const sentences = {
  held: "Held for you: please pay.",
  processing: "Your voucher is being checked; the time stays yours meanwhile.",
  confirmed: "Confirmed. We look forward to seeing you.",
  released: "Given back.",
  expired: "The time to pay is over; nothing was booked.",
  refunded: "Refunded: your money comes back.",
};

// One range touches every time that overlaps it.
function showRange(list, range) {
  const { expert, service } = list.dataset;
  const [start, end] = [Date.parse(range.start), Date.parse(range.end)];
  for (const item of list.querySelectorAll(".slot")) {
    if (Date.parse(item.dataset.start) < end && start < Date.parse(item.dataset.end)) {
      showSlot(item, { start: item.dataset.start, state: range.state }, expert, service);
    }
  }
}

let asked = 0;

async function showSlots(list) {
  const mine = ++asked;
  const { expert, service, day } = list.dataset;
  const query = new URLSearchParams({ service, day });
  const answer = await fetch("/api/experts/" + encodeURIComponent(expert) + "/slots?" + query);
  if (!answer.ok || mine !== asked) return;
  for (const slot of (await answer.json()).slots) {
    const item = list.querySelector('[data-start="' + CSS.escape(slot.start) + '"]');
    if (item) showSlot(item, slot, expert, service);
  }
}

function showSlot(item, slot, expert, service) {
  item.dataset.state = slot.state;
  item.querySelector(".state").textContent = slot.state;
  const link = item.querySelector("a.book");
  if (slot.state !== "free") {
    if (link) link.remove();
  } else if (!link) {
    const made = document.createElement("a");
    made.className = "book";
    made.textContent = "Book";
    const hidden = document.createElement("span");
    hidden.className = "visually-hidden";
    hidden.textContent = " " + item.querySelector("time").textContent;
    made.append(hidden);
    made.href = "/book?" + new URLSearchParams({ expert_id: expert, service_id: service, start: slot.start });
    item.append(made);
  }
}

document.querySelectorAll("[data-topic]").forEach(listen);

// Makes the marked parts of a page live: one event stream per part, from the event that the page was made with.
"use strict";

function listen(element) {
  const topic = element.dataset.topic;
  let address = "/api/events?topic=" + encodeURIComponent(topic);
  if (element.dataset.lastEventId) {
    address += "&last_event_id=" + encodeURIComponent(element.dataset.lastEventId);
  }
  const stream = new EventSource(address);
  stream.addEventListener("status", (event) => {
    const status = JSON.parse(event.data).status;
    element.dataset.status = status;
    element.textContent = status;
  });
  stream.addEventListener("appointment", (event) => {
    const state = JSON.parse(event.data).state;
    element.dataset.state = state;
    element.textContent = sentences[state] || state;
  });
  stream.addEventListener("slot", (event) => {
    showRange(element, JSON.parse(event.data));
    // The list has the last word: other holds may touch the same times.
    setTimeout(() => showSlots(element), 1200);
  });
  stream.addEventListener("gap", () => (element.id === "slots" ? showSlots(element) : location.reload()));
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
    made.href = "/book?" + new URLSearchParams({ expert_id: expert, service_id: service, start: slot.start });
    item.append(made);
  }
}

document.querySelectorAll("[data-topic]").forEach(listen);

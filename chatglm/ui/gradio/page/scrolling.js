// Scrolling: the page follows the answer only while the reader is at its end.

function distance() {
  return scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop;
}

function draw(change) {
  change();
  if (follows) toEnd();
  else drawToEnd();
}

function toEnd() {
  follows = true;
  scroller.scrollTop = scroller.scrollHeight;
  lastTop = scroller.scrollTop;
  drawToEnd();
}

function drawToEnd() {
  find("#to-end").hidden = follows || distance() < 60;
}

function onScroll() {
  const top = scroller.scrollTop;
  if (top < lastTop && distance() > 2) follows = false;
  else if (top > lastTop && distance() < 40) follows = true;
  lastTop = top;
  drawToEnd();
}

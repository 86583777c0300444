// Draws the HTML of an answer and, while it grows, what the `.feed` in its message holds: a component gets data but once
// in a run. What has not changed stays as it is, with what is selected and scrolled in it.
const draw = (place, html, copy) => {
  const template = document.createElement('template')
  template.innerHTML = html
  for (const head of template.content.querySelectorAll('.code-head')) {
    const button = document.createElement('button')
    button.type = 'button'
    button.textContent = copy
    head.append(button)
  }
  const drawn = template.content.firstElementChild
  const shown = place.firstElementChild
  if (shown?.className !== drawn.className) return place.replaceChildren(drawn)
  const old = [...shown.childNodes]
  const blocks = [...drawn.childNodes]
  blocks.forEach((block, number) => {
    if (!old[number]) shown.append(block)
    else if (!old[number].isEqualNode(block)) old[number].replaceWith(block)
  })
  old.slice(blocks.length).forEach((block) => block.remove())
}

// Follows a reader who is at the end of the page, and no other; a new answer is always shown.
export default ({ data, parentElement }) => {
  const place = parentElement.querySelector('section')
  const page = place.closest('.stMainBlockContainer')
  const message = place.closest('.stChatMessage')
  const show = (html, isNew) => {
    const isAtEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80
    draw(place, html, data.copy)
    if (isAtEnd || isNew) page.scrollTop = page.scrollHeight
  }
  show(data.html, data.is_new)
  place.onclick = async ({ target }) => {
    if (!target.matches('.code-head button')) return
    await copyText(target.closest('.code').querySelector('code').textContent)
    target.textContent = data.copied
    setTimeout(() => (target.textContent = data.copy), 1500)
  }
  place.feed?.disconnect()
  place.feed = new MutationObserver(() => {
    const feed = message.querySelector('.feed')
    if (feed && feed.textContent !== place.fed) show((place.fed = feed.textContent))
  })
  place.feed.observe(message, { childList: true, subtree: true, characterData: true })
  return () => place.feed.disconnect()
}

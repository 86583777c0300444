// A button that copies `data.text`. Its icon is of the font that Streamlit has.
export default ({ data, parentElement }) => {
  const place = parentElement.querySelector('section')
  place.className = 'copy'
  place.innerHTML = '<button type="button"><span aria-hidden="true"></span></button>'
  const button = place.firstElementChild
  const show = (words, icon) => {
    button.title = words
    button.setAttribute('aria-label', words)
    button.firstElementChild.textContent = icon
  }
  show(data.copy, 'content_copy')
  button.onclick = async () => {
    await copyText(data.text)
    show(data.copied, 'check')
    setTimeout(show, 1500, data.copy, 'content_copy')
  }
}

// Reads a file that the person chooses. The same one can be chosen again.
export default ({ data, parentElement, setTriggerValue }) => {
  const place = parentElement.querySelector('section')
  if (!place.firstElementChild) {
    place.className = 'open'
    place.innerHTML = '<button type="button"><span aria-hidden="true">upload</span> <b></b></button>'
    place.insertAdjacentHTML('beforeend', '<input type="file" accept=".json,application/json" hidden>')
  }
  const [button, input] = place.children
  button.lastElementChild.textContent = data.label
  button.onclick = () => input.click()
  input.onchange = async () => {
    setTriggerValue('chosen', await input.files[0].text())
    input.value = ''
  }
}

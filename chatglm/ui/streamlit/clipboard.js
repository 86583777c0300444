// Over plain HTTP from another machine, browsers have only the old way to copy.
const copyText = async (text) => {
  try {
    await navigator.clipboard.writeText(text)
  } catch {
    const box = document.createElement('textarea')
    box.value = text
    box.style.position = 'fixed'
    document.body.append(box)
    box.select()
    document.execCommand('copy')
    box.remove()
  }
}


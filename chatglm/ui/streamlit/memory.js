// Keeps the conversation of this tab, so that a reload or a restart of the server does not lose it: that of a run and,
// while an answer grows, what `.kept` holds.
const KEY = 'chatglm-conversation'

export default ({ data, parentElement, setTriggerValue }) => {
  const place = parentElement.querySelector('section')
  place.className = 'memory'
  place.role = 'status'
  const keep = (content) => {
    try {
      sessionStorage.setItem(KEY, content)
      place.textContent = ''
    } catch {
      place.textContent = data.full // or the browser refuses storage
    }
  }
  if (data.content === null) {
    let found = null
    try {
      found = sessionStorage.getItem(KEY)
    } catch {} // then nothing is kept
    setTriggerValue('found', found ?? 'null')
    return
  }
  keep(data.content)
  const observer = new MutationObserver(() => {
    const kept = document.querySelector('.kept')
    if (kept && kept.textContent !== place.kept) keep((place.kept = kept.textContent))
  })
  observer.observe(place.closest('.stApp'), { childList: true, subtree: true, characterData: true })
  return () => observer.disconnect()
}

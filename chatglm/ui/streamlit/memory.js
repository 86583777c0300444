// Keeps the conversation of this tab, so that a reload or a restart of the server does not lose it.
const KEY = 'chatglm-conversation'

export default ({ data, setTriggerValue }) => {
  try {
    if (data.content !== null) return sessionStorage.setItem(KEY, data.content)
    const found = sessionStorage.getItem(KEY)
    if (found) setTriggerValue('found', found)
  } catch (error) {
    console.warn(error) // the browser refuses storage, or it is full
  }
}

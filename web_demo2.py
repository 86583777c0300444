"""Chat with ChatGLM-6B in the browser: `streamlit run web_demo2.py`; flags go after `--`, try `-- --help`."""

from chatglm.ui.streamlit.streamlit_app import main

if __name__ == "__main__":
    main()

"""The web page: Type, Speak, Class and Edit over one gallery. gradio draws it; `page_actions.py` does the work."""

from typing import Any

from maskgil_jax.conditioning.languages import language_name
from maskgil_jax.pipelines.words import PromptReader
from maskgil_jax.web.page_actions import PageActions

PREVIEW_PIXELS = 384
DETECT = "detect"
CSS = """
.gradio-container {width: 100% !important; max-width: 1080px !important; margin: 0 auto}
#heading h1 {margin: .2rem 0}
#preview img, #gallery img {object-fit: contain}
.stages {font-variant-numeric: tabular-nums}
.badge {display: inline-block; padding: .1rem .6rem; border-radius: 1rem}
.badge {background: var(--primary-100); color: var(--primary-800)}
.dark .badge {background: var(--primary-800); color: var(--primary-100)}
button:focus-visible, input:focus-visible, textarea:focus-visible, [tabindex]:focus-visible {
  outline: 3px solid var(--primary-500); outline-offset: 2px}
#gallery .caption-label {
  left: 0; right: 0; bottom: 0; max-width: 100%; border-radius: 0; font-size: .7rem; white-space: normal; overflow: hidden}
@media (max-width: 640px) {
  .gradio-container {padding: .5rem !important}
  #main {flex-direction: column}
  #main > * {width: 100%; min-width: 0 !important}
  button.lg {min-height: 44px}
  button[role="tab"] {padding: .25rem .6rem !important}
}
"""


def build_page(engine: Any, reader: Any, speech: Any = None) -> Any:
    """The gradio Blocks of the page."""
    import gradio as gr

    actions = PageActions(engine, reader, speech)
    names, by_class = reader.prompts.names, reader.prompts.by_class
    sizes = [(_shape(size), f"{size[1]}x{size[0]}") for size in reader.sizes]
    hint = "a smiling face" if by_class else "a red circle on a blue ground"

    with gr.Blocks(title="maskgil_jax", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# Say or type, and see it\n{_about(reader)}", elem_id="heading")
        history = gr.State([])
        with gr.Row(elem_id="main"):
            with gr.Column(scale=1, min_width=240):
                with gr.Tabs():
                    with gr.Tab("Type", id="type"):
                        text = gr.Textbox(
                            label="Prompt",
                            placeholder=hint,
                            lines=1,
                            max_lines=3,
                            max_length=reader.cfg.max_prompt,
                            autofocus=True,
                            elem_id="prompt",
                        )
                        negative = gr.Textbox(
                            label="Not in the picture", max_length=reader.cfg.max_prompt, visible=not by_class
                        )
                        draw_text = gr.Button("Draw", variant="primary", elem_id="draw-text")
                    with gr.Tab("Speak", id="speak"):
                        if speech is None:
                            gr.Markdown("Speech is off. Start the server with `--speech base` to speak prompts.")
                        else:
                            menu = [
                                ("detect the language", DETECT),
                                *sorted((language_name(code), code) for code in speech.languages),
                            ]
                            language = gr.Dropdown(menu, value=DETECT, label="Language", elem_id="language")
                            sound = gr.Audio(
                                sources=["microphone", "upload"],
                                type="filepath",
                                label="Speak, then stop",
                                buttons=[],
                                elem_id="microphone",
                            )
                            badge = gr.HTML("", elem_id="badge")
                            words = gr.Textbox(
                                label="Heard, in English: change it and draw again",
                                lines=1,
                                max_lines=3,
                                max_length=reader.cfg.max_prompt,
                                elem_id="transcript",
                            )
                            draw_words = gr.Button("Draw", variant="primary", elem_id="draw-words")
                    with gr.Tab("Class", id="class"):
                        if by_class:
                            chosen = gr.Dropdown(
                                list(names),
                                value=names[0] if names else None,
                                label="Class",
                                filterable=True,
                                elem_id="class-menu",
                            )
                            draw_class = gr.Button("Draw", variant="primary", elem_id="draw-class")
                        else:
                            gr.Markdown("These weights draw texts: use Type or Speak.")
                    with gr.Tab("Edit", id="edit"):
                        gr.Markdown("Load a picture or take the last one, and paint over what shall be drawn anew.")
                        canvas = gr.ImageEditor(
                            type="pil",
                            image_mode="RGBA",
                            sources=["upload", "clipboard"],
                            label="Picture",
                            brush=gr.Brush(default_size=24, colors=["#ff3366"], color_mode="fixed"),
                            transforms=(),
                            layers=False,
                            canvas_size=(512, 512),
                            fixed_canvas=False,
                            height=420,
                            elem_id="canvas",
                        )
                        take = gr.Button("Take the last picture", elem_id="take")
                        edit_text = gr.Textbox(
                            label="What shall be there",
                            placeholder=hint,
                            max_length=reader.cfg.max_prompt,
                            elem_id="edit-prompt",
                        )
                        draw_edit = gr.Button("Draw the painted part", variant="primary", elem_id="draw-edit")
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    size = gr.Radio(sizes, value=sizes[0][1], label="Size", visible=len(sizes) > 1)
                    steps = gr.Slider(
                        0,
                        max(len(reader.steps) - 1, 1),
                        value=_default(reader),
                        step=1,
                        visible=len(reader.steps) > 1,
                        label=f"Speed to quality: {', '.join(map(str, reader.steps))} steps",
                        elem_id="steps",
                    )
                    share = gr.Radio(
                        list(reader.ar_ratios),
                        value=0.0,
                        label="Share of causal tokens: slower, other pictures",
                        visible=len(reader.ar_ratios) > 1,
                    )
                    count = gr.Slider(1, min(4, reader.cfg.max_images), value=1, step=1, label="Pictures", elem_id="count")
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, elem_id="seed")
                    locked = gr.Checkbox(False, label="Keep this seed", elem_id="locked")
            with gr.Column(scale=1, min_width=240):
                preview = gr.Image(
                    label="Picture",
                    interactive=False,
                    height=PREVIEW_PIXELS,
                    buttons=["fullscreen"],
                    elem_id="preview",
                    format="png",
                )
                state = gr.HTML("<span class='stages' role='status'>Ready.</span>", elem_id="state")
                with gr.Row():
                    again = gr.Button("Again", min_width=80, elem_id="again")
                    vary = gr.Button("Variations", min_width=80, elem_id="vary")
                    save = gr.DownloadButton("Download", min_width=80, elem_id="download")
                gallery = gr.Gallery(
                    label="Pictures so far",
                    show_label=False,
                    columns=3,
                    height="auto",
                    object_fit="contain",
                    format="png",
                    allow_preview=True,
                    elem_id="gallery",
                    buttons=["fullscreen"],
                )

        settings = [size, steps, share, count, seed, locked]
        shown = [preview, state, gallery, history, seed, save]
        drawing = {
            "outputs": shown,
            "concurrency_limit": 16,
            "concurrency_id": "draw",
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        gr.on([text.submit, draw_text.click], actions.draw, [text, negative, history, *settings], **drawing)
        if by_class:
            draw_class.click(actions.draw_class, [chosen, history, *settings], **drawing)
        if speech is not None:
            heard = gr.on(
                [sound.stop_recording, sound.upload],
                actions.hear,
                [sound, language],
                [words, badge, state],
                concurrency_limit=4,
                show_progress="minimal",
                api_visibility="private",
            )
            heard.success(actions.draw_heard, [words, history, *settings], **drawing)
            draw_words.click(actions.draw_heard, [words, history, *settings], **drawing)
            words.submit(actions.draw_heard, [words, history, *settings], **drawing)
        gr.on([edit_text.submit, draw_edit.click], actions.edit, [canvas, edit_text, history, *settings], **drawing)
        take.click(actions.last_picture, [history], [canvas], api_visibility="private")
        again.click(actions.again, [history, *settings], **drawing)
        vary.click(actions.vary, [history, *settings], **drawing)

        def choose(history, event: gr.SelectData):
            return actions.choose(history, event.index)

        gallery.select(choose, [history], [preview, seed, save], api_visibility="private")
        page.queue(max_size=64, default_concurrency_limit=8)
    return page


def mount_page(app: Any, engine: Any, reader: Any, speech: Any = None) -> None:
    """Mounts the page at / of the app. Nothing is loaded from other hosts: fonts are the system's."""
    import gradio as gr

    fonts = ["system-ui", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    theme = gr.themes.Soft(primary_hue="teal", font=fonts, font_mono=["ui-monospace", "monospace"])
    gr.mount_gradio_app(
        app,
        build_page(engine, reader, speech),
        "/",
        theme=theme,
        css=CSS,
        footer_links=[],
        max_file_size=reader.cfg.max_upload,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
    )


def _about(reader: Any) -> str:
    prompts: PromptReader = reader.prompts
    if prompts.by_class:
        return f"Weights `{reader.model}` draw {len(prompts.names)} classes; words are drawn as the class that they mean."
    return f"Weights `{reader.model}` draw what a text says."


def _shape(size: tuple[int, int]) -> str:
    height, width = size
    kind = "square" if height == width else "wide" if width > height else "tall"
    return f"{kind}, {width} x {height}"


def _default(reader: Any) -> int:
    stored = getattr(reader.pipeline.cfg, "steps", None)
    return reader.steps.index(stored) if stored in reader.steps else 0

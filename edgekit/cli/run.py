"""`edgekit run`: the bundle's model answers."""

from __future__ import annotations

import re
from pathlib import Path

import click

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All but tab and newline: a model may say, or be made to say, what moves the cursor or retitles the window."""


@click.command("run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--engine", type=click.Choice(["gguf", "onnx"]), help="Default: the first format in the bundle.")
@click.option("--system", help="System message, for models with a chat template.")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Longest answer.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the most probable token.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Nucleus to draw from.")
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Of the draws.")
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="0 takes the physical cores.")
@click.option(
    "--context", type=click.IntRange(16), default=2048, show_default=True, help="Longest prompt and answer, in tokens."
)
@click.option("--no-check", is_flag=True, help="Skip the checksums (a second or two for a large bundle).")
def command(
    bundle: Path, prompt: str, engine: str | None, system: str | None, max_tokens: int, temperature: float,
    top_p: float, seed: int, threads: int, context: int, no_check: bool,
) -> None:  # fmt: skip
    """Let the model in BUNDLE answer PROMPT: chat template, streaming, stops at the end of its turn."""
    from edgekit.bundle.bundle import open_bundle
    from edgekit.bundle.tokenizer import load_tokenizer
    from edgekit.chat import generate_text
    from edgekit.engines.opening import open_engine

    opened = open_bundle(bundle, check=not no_check)
    artefact = opened.artefact(engine)
    tokenizer = load_tokenizer(opened.tokenizer)
    model = open_engine(artefact.format, opened.root / artefact.path, threads=threads, context=context)
    try:
        pieces = generate_text(
            model,
            tokenizer,
            prompt,
            system=system,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        for piece in pieces:
            click.echo(_CONTROLS.sub(lambda match: repr(match[0])[1:-1], piece), nl=False)
        click.echo()
    finally:
        model.close()

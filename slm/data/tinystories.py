"""Known counts of TinyStories, which a correct preparation reproduces."""

from slm.data.corpus import Corpus
from slm.data.manifest import Manifest

KNOWN = {"train": (2_119_719, 473_992_236), "validation": (21_990, 4_765_918)}
"""Stories, and GPT-2 tokens with one end-of-text per story, of `hub:roneneldan/TinyStories`; public
repositories agree on these."""


def difference_from_known(manifest: Manifest) -> str:
    """How a manifest differs from the known counts; "" if it does not, or for other data."""
    default = Corpus()
    unchanged = default.reading | {"validation_share": None}
    if manifest.source != default.source or manifest.reading != unchanged:
        return ""
    for split, (stories, tokens) in KNOWN.items():
        facts = manifest.splits[split]
        if facts.stories != stories:
            found = f"{facts.stories:,} stories"
            return f"the {split} split contains {found}, not the known {stories:,}"
        if manifest.tokenizer["name"] == "gpt2" and facts.tokens != tokens:
            return f"the {split} split contains {facts.tokens:,} tokens, not the known {tokens:,}"
    return ""

from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st
from privacy_corpus import samples

from distllm.config.schema_privacy import PrivacyConfig, PrivacyKind
from distllm.data.privacy import Scrubber, placeholder

KINDS = get_args(PrivacyKind)
PIECES = [sample.text for sample in samples(40, seed=9)]
fragments = st.one_of(
    st.sampled_from(PIECES),
    st.sampled_from([placeholder(kind) for kind in KINDS]),
    st.text(alphabet="0123456789+-.() :/@aA\n", max_size=40),
    st.text(max_size=10),
)
texts = st.lists(fragments, max_size=5).map("".join)


@given(texts, st.sets(st.sampled_from(KINDS)))
@settings(max_examples=150, deadline=None)
def test_scrubbed_text_is_never_changed_again(text, kinds):
    scrubber = Scrubber(PrivacyConfig(scrub=tuple(kinds), private_ips=True))
    out, counts = scrubber.scrub(text)
    assert scrubber.scrub(out)[1].total() == 0
    assert set(counts) <= kinds


@given(texts)
@settings(max_examples=150, deadline=None)
def test_replacing_the_findings_gives_the_scrubbed_text(text):
    scrubber = Scrubber(PrivacyConfig(scrub=KINDS))
    found = scrubber.find(text)
    out, position = "", 0
    for each in found:
        assert position <= each.start < each.stop
        out += text[position : each.start] + placeholder(each.kind)
        position = each.stop
    assert (out + text[position:], len(found)) == (scrubber.scrub(text)[0], scrubber.scrub(text)[1].total())

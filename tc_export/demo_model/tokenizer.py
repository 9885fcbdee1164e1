# SPDX-License-Identifier: Apache-2.0
"""A small tokenizer in Hugging Face's format, made from the words of the suite's templates.

Byte-level BPE: every word of the templates is one token, and any other text falls back to its
bytes, so that whatever is typed can be encoded and decoded without loss.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tc_export.tasks import Split, make_items, possible_answers

PAD, BOS, EOS, VIDEO = "<pad>", "<s>", "</s>", "<video>"

PROMPT = "USER: <video>\n{question} ASSISTANT:"
"""Vicuna's form. The tokenizer puts <s> in front."""

# The same for a conversation: content is a string, or a list of videos and texts.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() + ':' }}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ ' <video>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ part['text'] if message['role'] == 'user' and loop.first and "
    "message['content'] | selectattr('type', 'equalto', 'video') | list "
    "else ' ' + part['text'] }}"
    "{% endfor %}"
    "{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

WORDS_SAMPLED_EACH = 60  # items of every kind and grade: enough for every word of the templates
LARGEST_VOCABULARY = 2048  # more than there are merges to make


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer; it is the same each time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LARGEST_VOCABULARY,
        min_frequency=1,
        show_progress=False,
        special_tokens=[PAD, BOS, EOS, VIDEO],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    items = make_items(Split.TRAIN, WORDS_SAMPLED_EACH)
    questions = sorted({"\n" + item.question for item in items})
    answers = [" " + answer for answer in possible_answers()]
    tokenizer.train_from_iterator(["USER: ", " ASSISTANT:", *questions, *answers], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[VIDEO],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    return made


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one token."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found

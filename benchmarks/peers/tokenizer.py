"""A tokenizer of words, for peers that will not start without one: ``python tokenizer.py FOLDER``."""

import sys

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

words = {"[UNK]": 0, "[PAD]": 1, **{f"w{number}": number for number in range(2, 1000)}}
tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
tokenizer.pre_tokenizer = Whitespace()
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[PAD]"
).save_pretrained(sys.argv[1])

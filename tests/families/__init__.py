"""A family of models: what its folder must hold, and the suite that proves it.

A row of `chatglm.models` names the family, recognises its config.json and says where its modules lie. With P the
prefix of its class names, they hold:

    config.py     PNetworkConfig.from_keys(keys of config.json); besides the family's own sizes it has
                  quantization_bit, quantization_embedding_bit, quantization_group_size, pre_seq_len, prefix_projection,
                  tie_word_embeddings, dtype
    tokenizer.py  PTextTokenizer.from_folder(folder): encode_plain(text), build_inputs_with_special_tokens(ids),
                  decode(ids), surface(id), leading_spaces, clean_up_tokenization_spaces, vocab_size
                  and, for byte pairs, broken_bytes = "together"
    template.py   encode_chat(tokenizer, messages, limit) -> EncodedPrompt(input_ids, dropped_rounds)
    positions.py  find_layout(input_ids, config) -> positions(start, stop), answer_positions(column),
                  num_bidirectional: how many columns at the start see each other; 0 for a causal family
    network.py    PNetwork(config): a plain module, see `chatglm.engine.decoder.Network`; forward(ids) gives logits
    weights.py    model_spec(config) -> ModelSpec: names, sizes and conventions as data
    model.py      the classes for transformers: PConfig, PForConditionalGeneration
    pretrained_tokenizer.py  likewise PTokenizer

Nothing outside the folder may know more of the family than its `ModelSpec`. To prove a new one, add a `FamilyCase` to
`tests.families.cases.CASES`: `tests/families/conformance` then runs every feature of the suite with a tiny model of it.
`tests/families/glimmer` is an invented family, as unlike ChatGLM-6B as ChatGLM2 is, and a small example to copy.
"""

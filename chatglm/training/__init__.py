"""Training a ChatGLM on rows of prompts and answers, and measuring what came of it.

    records -> encoding -> trainer -> saving            rows, ids, steps, checkpoints
    records -> encoding -> answers -> metrics           rows, ids, answers, scores
    arguments, recipes, run                             what was asked, what is trained, in which order

Knows: P-Tuning v2, LoRA and full fine-tuning, with upstream's arguments. Does not know faces.
"""

"""Training on rows of prompts and answers: P-Tuning v2, LoRA, full fine-tuning; with upstream's arguments.

records -> encoding -> trainer -> recipes           rows, ids, steps, checkpoints
records -> encoding -> answers -> metrics           rows, ids, answers, scores
arguments, run                                      what was asked, in which order it is done
"""

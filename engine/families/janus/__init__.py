"""The Janus family: transformers' JanusForConditionalGeneration behind the engine's protocols."""

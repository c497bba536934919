"""One step of a batch: its tensors, the step of one token an image, and lookahead, the step of several."""

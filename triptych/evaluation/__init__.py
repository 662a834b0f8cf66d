"""Pure metrics (captions, VQA, retrieval, boxes, classes), blind baselines and the evaluator."""

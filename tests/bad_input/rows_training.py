"""Options of training."""

from row import Row

ROWS = [
    Row("eps of 8", "pretrain <pretrain> --eps 8", ("--eps=8", "8/255")),
    Row("no weights to transfer", "finetune <finetune> --model_name_or_path resnet18", "without weights"),
    Row("no model", "pretrain <short>", "--model_name_or_path is missing"),
]

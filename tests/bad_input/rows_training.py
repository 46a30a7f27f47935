"""Options of training: out of range, unknown, in contradiction with each other, or with the data."""

from row import Row


def refused(option, *words, to="pretrain <pretrain>"):
    """A row for a good command line with an option after it."""
    return Row(f"{to.split()[0]} {option}", f"{to} {option}", words or option.split()[0])


def file_of_options(text):
    return lambda here, places: (here / "run.yaml").write_text(text)


NUMBERS = [
    *((option, f"--{option.split()[0]} {shown} must be above 0") for option, shown in (
        ("learning_rate 0", "0.0"),
        ("num_train_epochs 0", "0.0"),
        ("max_steps 0", "0"),
        ("adam_epsilon 0", "0.0"),
        ("save_steps 0", "0.0"),
    )),
    *((f"{name} -1", f"--{name} -1") for name in (
        "learning_rate", "weight_decay", "seed", "data_seed", "per_device_train_batch_size", "per_device_eval_batch_size",
        "gradient_accumulation_steps", "attack_steps", "eval_attack_steps", "free_replays", "trades_beta", "lwf_weight",
        "warm_start_steps", "unfreeze_warmup_steps", "eps_warmup_steps", "warm_start_learning_rate", "num_train_epochs",
        "max_grad_norm", "random_crop", "save_total_limit", "logging_steps", "save_steps", "eval_steps", "eval_delay",
        "adam_beta1", "warmup_steps", "ddp_timeout", "warm_start_epochs", "halve_on_divergence",
        "random_resized_crop",
    )),
    *((f"{name} {value}", f"--{name} {value} must be a finite number") for name, value in (
        ("learning_rate", "nan"), ("learning_rate", "inf"), ("weight_decay", "nan"), ("max_grad_norm", "nan"),
        ("lwf_weight", "nan"), ("trades_beta", "inf"), ("warm_start_steps", "nan"), ("num_train_epochs", "inf"),
        ("adam_beta2", "nan"), ("eps_warmup_steps", "inf"), ("warmup_steps", "nan"),
    )),
    *((f"{name} 0", f"--{name} 0 must be at least 1") for name in (
        "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "attack_steps",
        "free_replays", "save_total_limit",
    )),
    ("max_steps -5", "--max_steps -5 must be at least -1; -1 leaves the length to --num_train_epochs"),
    ("seed 4294967296", "--seed 4294967296 must be below 4294967296"),
    ("per_device_train_batch_size 100000000000000000000", "must be below 2147483648"),
    ("max_steps 9999999999", "--max_steps 9999999999 must be below 2147483648"),
    ("adam_beta1 1", "--adam_beta1 1.0 must be below 1"),
    ("eps nan", "--eps='nan' is not a number"),
    ("eps=-1/255", "--eps=-1/255 must be a finite number of at least 0"),
    ("attack_step_size 0", "--attack_step_size must be above 0"),
    ("eval_attack_step_size nan", "--eval_attack_step_size='nan' is not a number"),
    ("feature_cache_limit -1", "--feature_cache_limit -1 is not a size"),
]  # fmt: skip
TYPES = [
    ("learning_rate much", "--learning_rate: invalid float value: 'much'"),
    ("seed 1.5", "--seed: invalid int value: '1.5'"),
    ("use_cpu perhaps", "--use_cpu: Truthy value expected"),
    ("max_steps", "--max_steps: expected one argument"),
    ("per_device_train_batch_size 1e3", "--per_device_train_batch_size: invalid int value"),
]
NAMES = [
    ("report_to nosuch", ("--report_to nosuch is unknown or not installed", "none")),
    ("lr_scheduler_type cosin", ("--lr_scheduler_type cosin is unknown", "cosine")),
    ("optim sgdd", ("--optim sgdd is unknown", "sgd")),
    ("save_strategy sometimes", "--save_strategy sometimes is unknown: use no, steps, epoch or best"),
    ("eval_strategy sometimes", ("--eval_strategy", "sometimes")),
    ("logging_strategy sometimes", ("--logging_strategy", "sometimes")),
    ("hub_strategy sometimes", ("--hub_strategy", "sometimes")),
    ("log_level loud", ("--log_level", "loud")),
    ("train_sampling_strategy group_by_length", "images have no length"),
    ("optim_args momentum=fast", ("--optim sgd --optim_args momentum=fast is refused", "fast")),
    ("optim_args momentum", "--optim_args momentum is refused"),
    ("optim_args momentm=0.5", ("--optim_args momentm=0.5", "sgd has no option momentm")),
    ("optim_args momentum=nan", "momentum nan must be a finite number"),
    ("optim_args momentum=-1", "--optim_args momentum=-1 is refused"),
    ("optim adamw_bnb_8bit --learning_rate 0.1", "--optim adamw_bnb_8bit --optim_args"),
    ("lr_scheduler_kwargs '{bad'", "--lr_scheduler_kwargs {bad is not a JSON object"),
    ("lr_scheduler_kwargs bad", "--lr_scheduler_kwargs bad is not a JSON object"),
    ("lr_scheduler_kwargs '{\"bad\": 1}'", ("--lr_scheduler_type linear with --lr_scheduler_kwargs", "bad")),
    ("lr_scheduler_type cosine_with_min_lr", "--lr_scheduler_type cosine_with_min_lr with --lr_scheduler_kwargs None"),
    ("accelerator_config nowhere.json", "--accelerator_config nowhere.json is neither a JSON object nor a file"),
    ("accelerator_config '{\"bad\": 1}'", "bad"),
    ("torch_compile_backend nosuch", "--torch_compile_backend nosuch is unknown"),
    ("objective_options '{\"beta\": 1'", "--objective_options"),
    ("objective pgd --objective_options '{\"beta\": 1}'", "has no option 'beta'"),
    ("objective trades --objective_options '{\"beta\": -1}'", "beta"),
    ("objective nowhere:function", "--objective 'nowhere:function': there is no module"),
    (
        "metric_for_best_model f1 --save_strategy best --eval_strategy epoch",
        "--metric_for_best_model f1 is not measured: use accuracy, robust_accuracy",
    ),
]
CONTRADICTIONS = [
    ("load_best_model_at_end", "--load_best_model_at_end needs evaluations to choose by: give --eval_strategy"),
    (
        "load_best_model_at_end --eval_strategy steps --save_strategy epoch",
        "--load_best_model_at_end requires",
    ),
    ("load_best_model_at_end --eval_strategy steps --eval_steps 3 --save_strategy steps --save_steps 4", "multiple"),
    ("save_strategy best --eval_strategy epoch", "--save_strategy best needs --metric_for_best_model"),
    ("save_strategy best --metric_for_best_model accuracy", "--save_strategy best needs evaluations to choose by"),
    ("metric_for_best_model robust_accuracy --eval_attack_steps 0", "is not measured with --eval_attack_steps 0"),
    ("metric_for_best_model eval_robust_loss --eval_attack_steps 0", "is not measured with --eval_attack_steps 0"),
    ("metric_for_best_model accuracy --greater_is_better false", "would choose the worst accuracy"),
    ("eval_attack_steps 0 --eval_attack_step_size 1/255", "--eval_attack_step_size has no effect"),
    ("lr_scheduler_type reduce_lr_on_plateau", "reduce_lr_on_plateau requires an eval strategy"),
    ("freeze backbone --warm_start_steps 3", "--freeze backbone trains nothing else"),
    ("warm_start_learning_rate 0.1", "--warm_start_learning_rate has no effect without a warm start"),
    ("warm_start_steps 5 --max_steps 5", "--warm_start_steps 5 leaves nothing of --max_steps 5"),
    ("warm_start_steps 5 --warm_start_epochs 5", "--warm_start_steps and --warm_start_epochs both say"),
    ("freeze backbone --warm_start_epochs 3", "--warm_start_epochs trains the head first"),
    ("warm_start_epochs 3 --warmup_steps 2", "--warmup_steps has no place with --warm_start_epochs"),
    (
        "warm_start_epochs 3 --lr_scheduler_type reduce_lr_on_plateau --eval_strategy epoch",
        "--lr_scheduler_type reduce_lr_on_plateau is no schedule over steps",
    ),
    ("random_resized_crop 1.5", "--random_resized_crop 1.5 is a share of the image's area: at most 1"),
    ("random_resized_crop 0.35 --random_crop 4", "--random_crop and --random_resized_crop both crop: drop one"),
    ("eps_schedule ramp", "--eps_schedule ramp is unknown: use constant or hinge"),
    ("eps_schedule hinge", "--eps_schedule hinge has no effect with --objective natural"),
    ("eps_delay_steps 3", "--eps_delay_steps has no effect with --objective natural"),
    ("eps_delay_steps -1 --objective pgd", "--eps_delay_steps -1"),
    ("eps_delay_steps nan --objective pgd", "--eps_delay_steps nan must be a finite number"),
    ("trades_beta much", "--trades_beta much is neither a number nor auto"),
    ("trades_beta -1 --objective trades", "--trades_beta -1.0 must be at least 0"),
    ('objective trades --objective_options \'{"beta": "much"}\'', "beta='much' must be a number"),
    ("objective anchor --freeze backbone", "so that --objective anchor changes nothing"),
    ("objective anchor --objective_options '{\"weight\": -1}'", "weight='-1' must be a number of at least 0"),
    (
        "objective anchor --objective_options '{\"labels\": 0}' --warm_start_epochs 1",
        "--objective anchor with labels=0 trains no head",
    ),
    ("transfer roli --objective natural", "--transfer roli trains on adversarial images"),
    ("transfer roli --eval_attack_steps 0", "is not measured with --eval_attack_steps 0"),
    ("averaging_decay 0.9", "--averaging_decay has no effect without --averaging"),
    ("averaging_start 0.5", "--averaging_start has no effect without --averaging"),
    ("averaging swa --averaging_decay 0.9", "--averaging_decay is for --averaging ema"),
    ("averaging ema --averaging_decay 1", "--averaging_decay 1.0 must be below 1"),
    ("averaging ema --averaging_decay nan", "--averaging_decay nan must be a finite number"),
    ("averaging ema --averaging_start -1", "--averaging_start -1"),
    ("averaging swa --averaging_start 1", "--averaging_start 1 leaves none of the 1 steps"),
    ("averaging mean", "--averaging mean is unknown: use none, ema or swa"),
    ("fp16", "--fp16 needs a GPU"),
    ("fp16 --bf16", "fp16 and bf16"),
    ("dataloader_prefetch_factor 2", "--dataloader_prefetch_factor needs processes that read images"),
    ("dataloader_persistent_workers", "--dataloader_persistent_workers needs processes that read images"),
    ("label_smoothing_factor 0.1", "--label_smoothing_factor is not supported"),
    ("neftune_noise_alpha 5", "--neftune_noise_alpha is not supported"),
    ("dataloader_drop_last --per_device_train_batch_size 64", ("--dataloader_drop_last", "64", "images")),
    ("warm_start_steps 20 --max_steps -1 --num_train_epochs 2", "--warm_start_steps 20 leaves nothing"),
    ("freeze 99", "freeze=99, but this backbone has"),
]
OF_TRANSFER = [
    ("transfer lwf --lwf_weight 0", "--transfer lwf and --lwf_weight 0 contradict"),
    ("lwf_weight 0", "use --transfer fine_tuned"),
    ("transfer frozen --lwf_weight 1", "--transfer frozen keeps the features as they are"),
    ("transfer fine_tuned --lwf_weight 1", "use --transfer lwf"),
    ("transfer frozen --freeze none", "use --transfer fine_tuned"),
    ("transfer lwf --freeze backbone", "--freeze backbone"),
    ("freeze backbone --warm_start_steps 0", "so that --lwf_weight 1 changes nothing"),
    ("transfer frozen --teacher_name_or_path other", "--teacher_name_or_path"),
    ("transfer best", "--transfer best is unknown"),
    ("lwf_distance l3", "--lwf_distance l3 is unknown"),
    ("optim adamw_torch", "--learning_rate is missing"),
    ("teacher_name_or_path nowhere", "nowhere"),
    ("teacher_name_or_path resnet18", "without weights"),
]
ROWS = [
    *(refused(f"--{option}", *([words] if isinstance(words, str) else words)) for option, words in (
        *NUMBERS, *TYPES, *NAMES, *CONTRADICTIONS
    )),
    *(refused(f"--{option}", words, to="finetune <finetune>") for option, words in OF_TRANSFER),
    refused("--eps 8", "--eps=8", "8/255"),
    Row("finetune an architecture", "finetune <finetune> --model_name_or_path resnet18", "without weights"),
    Row("no model", "pretrain <short>", "--model_name_or_path is missing"),
    Row("no model to transfer", "finetune <short>", "--model_name_or_path is missing"),
    Row("an unknown flag", "pretrain <pretrain> --lerning_rate 1", "do you mean --learning_rate?"),
    Row("a word too many", "pretrain stray <pretrain>", "stray is no option"),
    Row("quickstart seed -1", "quickstart --seed -1", "--seed -1 must be at least 0"),
    *(Row(f"file: {text!r}", "pretrain run.yaml --output_dir run", words, make=file_of_options(text)) for text, words in (
        ("eps: [", "cannot be read"),
        ("seed: -1", "--seed -1"),
        ("learning_rate: .nan", "learning_rate .nan is refused"),
        ("learning_rate: nan", "--learning_rate nan must be a finite number"),
        ("report_to: nosuch", "--report_to nosuch"),
        ("save_strategy: sometimes", "--save_strategy sometimes"),
        ("transfer: lwf\nlwf_weight: 0", "--lwf_weight 0"),
        ("lr_scheduler_type: cosin", "lr_scheduler_type"),
    )),
    Row("no file of options", "pretrain nowhere.yaml", "nowhere.yaml cannot be read"),
]  # fmt: skip

"""The command lines of the old trainers' documents, verbatim but for the program's name."""

COMMANDS = {
    "S0.1": r"""
indextts-job train \
  --train-manifest processed/GPT_pairs_train.jsonl \
  --val-manifest processed/GPT_pairs_val.jsonl \
  --tokenizer tokenizers/extended_bpe.model \
  --epochs 2
""",
    "S0.2": r"""
indextts-job train \
  --resume auto \
  --train-manifest processed/GPT_pairs_train.jsonl \
  --val-manifest processed/GPT_pairs_val.jsonl \
  --tokenizer tokenizers/extended_bpe.model \
  --epochs 2
""",
    "S1.1": r"""
indextts-job train \
  --train-manifest preprocessed_amharic/train_pairs.jsonl \
  --val-manifest preprocessed_amharic/val_pairs.jsonl \
  --tokenizer tokenizers/amharic_extended_bpe.model \
  --output-dir training_output \
  --config checkpoints/config.yaml \
  --base-checkpoint checkpoints/gpt.pth \
  --resume auto \
  --amp
""",
    "S2.1": r"""
# Your old checkpoint at step 38k
indextts-job train \
  --resume trained_ckpts/latest.pth \
  # ... other args with FIX applied
""",
    "S2.2": r"""
# New training with fix
indextts-job train \
  --train-manifest preprocessed_amharic/train_pairs.jsonl \
  --val-manifest preprocessed_amharic/val_pairs.jsonl \
  --tokenizer tokenizers/amharic_extended_bpe.model \
  --output-dir trained_ckpts_fixed \
  --learning-rate 5e-6 \
  --text-loss-weight 0.4 \
  --mel-loss-weight 0.6 \
  --warmup-steps 2000 \
  --amp
  # NO --resume flag!
""",
    "S2.3": r"""
# After training with fix for 20k steps, you get interrupted
# Resume correctly:
indextts-job train \
  --train-manifest preprocessed_amharic/train_pairs.jsonl \
  --val-manifest preprocessed_amharic/val_pairs.jsonl \
  --tokenizer tokenizers/amharic_extended_bpe.model \
  --output-dir trained_ckpts_fixed \
  --resume trained_ckpts_fixed/latest.pth \
  --learning-rate 5e-6 \
  --text-loss-weight 0.4 \
  --mel-loss-weight 0.6 \
  --warmup-steps 2000 \
  --amp
""",
    "S2.4": r"""
# Start fresh in new directory
indextts-job train \
  --output-dir trained_ckpts_fixed_fresh \
  # ... (use all recommended parameters from LIGHTNING_AI_ACTION_PLAN.md)
""",
    "S2.5": r"""
# Resume from old checkpoint with fix
indextts-job train \
  --resume trained_ckpts/latest.pth \
  --output-dir trained_ckpts_resumed \
  --learning-rate 5e-6 \
  --text-loss-weight 0.4 \
  --mel-loss-weight 0.6 \
  --warmup-steps 2000 \
  # ... other args
""",
    "S2.6": r"""
indextts-job train \
  --output-dir trained_ckpts_hybrid \
  --learning-rate 5e-6 \
  --warmup-steps 2000 \
  # ... other recommended args
""",
    "S2.7": r"""
indextts-job train \
  --resume trained_ckpts/latest.pth \
  --output-dir trained_ckpts_resumed \
  # ... recommended params
""",
    "S2.8": r"""
indextts-job train \
  --train-manifest preprocessed_amharic/train_pairs.jsonl \
  --val-manifest preprocessed_amharic/val_pairs.jsonl \
  --tokenizer tokenizers/amharic_extended_bpe.model \
  --config checkpoints/config.yaml \
  --base-checkpoint checkpoints/gpt.pth \
  --output-dir trained_ckpts_fixed_fresh \
  --epochs 10 \
  --learning-rate 5e-6 \
  --text-loss-weight 0.4 \
  --mel-loss-weight 0.6 \
  --warmup-steps 2000 \
  --log-interval 100 \
  --val-interval 500 \
  --amp
""",
    "S2.9": r"""
indextts-job train \
  --train-manifest preprocessed_amharic/train_pairs.jsonl \
  --val-manifest preprocessed_amharic/val_pairs.jsonl \
  --tokenizer tokenizers/amharic_extended_bpe.model \
  --config checkpoints/config.yaml \
  --base-checkpoint checkpoints/gpt.pth \
  --resume trained_ckpts/latest.pth \
  --output-dir trained_ckpts_resumed_experiment \
  --epochs 10 \
  --learning-rate 5e-6 \
  --text-loss-weight 0.4 \
  --mel-loss-weight 0.6 \
  --warmup-steps 2000 \
  --log-interval 100 \
  --val-interval 500 \
  --amp
""",
    "S3.1": r"""
indextts-job train ^
  --train-manifest preprocessed_amharic\train_pairs.jsonl ^
  --val-manifest preprocessed_amharic\val_pairs.jsonl ^
  --tokenizer tokenizers\amharic_extended_bpe.model ^
  --output-dir training_output ^
  --resume auto ^
  --amp
""",
    "S3.2": r"""
# Move old checkpoint aside
move training_output\latest.pth training_output\latest_old.pth

# Start fresh (no --resume flag)
indextts-job train ^
  --train-manifest preprocessed_amharic\train_pairs.jsonl ^
  --val-manifest preprocessed_amharic\val_pairs.jsonl ^
  --tokenizer tokenizers\amharic_extended_bpe.model ^
  --output-dir training_output ^
  --amp
""",
    "S4.1": r"""
# Resume from latest checkpoint automatically
indextts-job train \
    --resume_from auto \
    --config configs/amharic_200hr_full_training_config.yaml
""",
    "S4.2": r"""
# Resume from specific checkpoint file
indextts-job train \
    --resume_from checkpoints/amharic_200hr_full_training/full_training_checkpoint_step_1000.pt \
    --config configs/amharic_200hr_full_training_config.yaml
""",
    "S4.3": r"""
# Resume with optimizer and scheduler states
indextts-job train \
    --resume_from auto \
    --load_optimizer \
    --load_scheduler \
    --config configs/amharic_200hr_full_training_config.yaml

# Resume without loading states (fresh start with model weights)
indextts-job train \
    --resume_from auto \
    --no-load_optimizer \
    --no-load_scheduler
""",
    "S4.4": r"""
# List all available checkpoints
indextts-job train \
    --list_checkpoints \
    --output_dir checkpoints/amharic_200hr_full_training
""",
    "S4.5": r"""
indextts-job train \
    --config configs/amharic_200hr_full_training_config.yaml \
    --model_path checkpoints/gpt.pth \
    --output_dir checkpoints/amharic_200hr_full_training \
    --amharic_vocab amharic_bpe.model \
    --train_manifest amharic_dataset/train_manifest.jsonl \
    --val_manifest amharic_dataset/val_manifest.jsonl \
    --num_epochs 8 \
    --batch_size 1 \
    --mixed_precision
""",
    "S4.6": r"""
# Auto-resume from latest checkpoint
indextts-job train \
    --resume_from auto \
    --config configs/amharic_200hr_full_training_config.yaml \
    --output_dir checkpoints/amharic_200hr_full_training \
    --amharic_vocab amharic_bpe.model \
    --train_manifest amharic_dataset/train_manifest.jsonl \
    --val_manifest amharic_dataset/val_manifest.jsonl
""",
    "S4.7": r"""
# Resume from step 1000 checkpoint
indextts-job train \
    --resume_from checkpoints/amharic_200hr_full_training/full_training_checkpoint_step_1000.pt \
    --config configs/amharic_200hr_full_training_config.yaml \
    --output_dir checkpoints/amharic_200hr_full_training \
    --amharic_vocab amharic_bpe.model \
    --train_manifest amharic_dataset/train_manifest.jsonl \
    --val_manifest amharic_dataset/val_manifest.jsonl
""",
    "S4.8": r"""
# Step 1: Start initial training
indextts-job train \
    --config configs/amharic_200hr_full_training_config.yaml

# Step 2: If interrupted, resume from latest checkpoint
indextts-job train \
    --resume_from auto

# Step 3: Check training status
indextts-job train \
    --list_checkpoints

# Step 4: Use best model for evaluation
indextts-job train \
    --model_path checkpoints/amharic_200hr_full_training/full_training_best_model.pt
""",
}

"""Papers behind what a run may use, with their citations."""

from __future__ import annotations

from typing import Any

PAPERS: dict[str, tuple[str, str, str, str]] = {
    "dpo": (
        "rafailov2023direct",
        "Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Ermon, Stefano and Manning, Christopher D. and "
        "Finn, Chelsea",
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "2305.18290",
    ),
    "grpo": (
        "shao2024deepseekmath",
        "Shao, Zhihong and Wang, Peiyi and Zhu, Qihao and Xu, Runxin and Song, Junxiao and others",
        "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
        "2402.03300",
    ),
    "dapo": (
        "yu2025dapo",
        "Yu, Qiying and Zhang, Zheng and Zhu, Ruofei and Yuan, Yufeng and Zuo, Xiaochen and others",
        "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
        "2503.14476",
    ),
    "dr_grpo": (
        "liu2025understanding",
        "Liu, Zichen and Chen, Changyu and Li, Wenjun and Qi, Penghui and Pang, Tianyu and others",
        "Understanding R1-Zero-Like Training: A Critical Perspective",
        "2503.20783",
    ),
    "cpo": (
        "xu2024contrastive",
        "Xu, Haoran and Sharaf, Amr and Chen, Yunmo and Tan, Weiting and Shen, Lingfeng and others",
        "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
        "2401.08417",
    ),
    "orpo": (
        "hong2024orpo",
        "Hong, Jiwoo and Lee, Noah and Thorne, James",
        "ORPO: Monolithic Preference Optimization without Reference Model",
        "2403.07691",
    ),
    "kto": (
        "ethayarajh2024kto",
        "Ethayarajh, Kawin and Xu, Winnie and Muennighoff, Niklas and Jurafsky, Dan and Kiela, Douwe",
        "KTO: Model Alignment as Prospect Theoretic Optimization",
        "2402.01306",
    ),
    "simpo": (
        "meng2024simpo",
        "Meng, Yu and Xia, Mengzhou and Chen, Danqi",
        "SimPO: Simple Preference Optimization with a Reference-Free Reward",
        "2405.14734",
    ),
    "ipo": (
        "azar2023general",
        "Azar, Mohammad Gheshlaghi and Rowland, Mark and Piot, Bilal and Guo, Daniel and Calandriello, Daniele and "
        "Valko, Michal and Munos, Remi",
        "A General Theoretical Paradigm to Understand Learning from Human Preferences",
        "2310.12036",
    ),
    "LORA": (
        "hu2021lora",
        "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and others",
        "LoRA: Low-Rank Adaptation of Large Language Models",
        "2106.09685",
    ),
    "nf4": (
        "dettmers2023qlora",
        "Dettmers, Tim and Pagnoni, Artidoro and Holtzman, Ari and Zettlemoyer, Luke",
        "QLoRA: Efficient Finetuning of Quantized LLMs",
        "2305.14314",
    ),
}
"""name -> key, authors, title, arXiv id"""


def of(method: str | None, settings: dict[str, Any], policy: dict[str, Any]) -> list[str]:
    """Names of the papers a run stands on: the method's, its loss's, the adapter's, the quantisation's."""
    loss = settings.get("loss_type")
    losses = loss if isinstance(loss, (list, tuple)) else [loss]
    wanted = [method, *losses, (policy.get("adapter") or {}).get("peft_type"), policy.get("quantize")]
    return list(dict.fromkeys(name for name in wanted if isinstance(name, str) and name in PAPERS))


def link(name: str) -> str:
    """The paper as a Markdown link."""
    _, _, title, arxiv = PAPERS[name]
    return f"[{title}](https://arxiv.org/abs/{arxiv})"


def bibtex(name: str) -> str:
    """The paper's BibTeX entry."""
    key, authors, title, arxiv = PAPERS[name]
    year = f"20{arxiv[:2]}"
    return (
        f"@misc{{{key},\n  title = {{{{{title}}}}},\n  author = {{{authors}}},\n  year = {{{year}}},\n"
        f"  eprint = {{{arxiv}}},\n  archivePrefix = {{arXiv}}\n}}"
    )

"""Write the small bundled data set: product words in, an advertising text out, in the form of AdvertiseGen.

    {"content": "类型#连衣裙*颜色#米白*材质#亚麻*版型#宽松", "summary": "这款连衣裙选用米白色，……"}

and conversations about the same products, for training with a history:

    {"prompt": "换成黑色再写一次", "response": "黑色的连衣裙，……", "history": [["类型#连衣裙*…", "这款连衣裙……"]]}

Every sentence is put together from the word lists below, which were written for this project. The same seed gives the
same files: `python make_clothes.py`.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NUM_TRAIN, NUM_DEV, SEED = 480, 60, 20
NUM_TALKS, NUM_DEV_TALKS = 240, 40

TYPES = ["连衣裙", "半身裙", "衬衫", "毛衣", "卫衣", "风衣", "外套", "牛仔裤", "长裤", "上衣"]
OPENINGS = ["这款{type}选用{color}，看上去{mood}。", "{color}的{type}，第一眼就让人觉得{mood}。"]
COLORS = {
    "白色": "干净清爽",
    "黑色": "沉稳大方",
    "米白": "温柔安静",
    "浅蓝": "像晴天一样明亮",
    "酒红": "成熟又热情",
    "墨绿": "复古而有味道",
    "粉色": "甜美可爱",
    "灰色": "低调耐看",
}
DETAILS = {
    "材质": {
        "纯棉": ["纯棉面料柔软透气，贴身穿也很舒服。", "用纯棉织成，吸汗又好洗。"],
        "亚麻": ["亚麻的纹理自然，夏天穿着凉快。", "亚麻面料轻薄，风一吹就凉。"],
        "羊毛": ["羊毛细密保暖，冬天也不怕冷。", "用羊毛织成，摸起来又软又暖。"],
        "真丝": ["真丝光泽柔和，像水一样顺滑。", "真丝面料轻盈，穿上几乎没有重量。"],
        "牛仔布": ["牛仔布结实耐磨，越洗越有味道。", "厚实的牛仔布，经得起每天穿。"],
        "雪纺": ["雪纺轻轻飘动，走起路来很有仙气。", "雪纺面料垂感好，不容易起皱。"],
    },
    "版型": {
        "宽松": ["宽松的版型不挑身材，活动自如。", "版型宽松，遮肉又随性。"],
        "修身": ["修身的剪裁勾出好看的腰线。", "版型修身，显得人又高又瘦。"],
        "直筒": ["直筒的线条利落，把腿拉得很长。", "直筒版型，简单又显瘦。"],
        "高腰": ["高腰设计提升比例，小个子也能穿。", "腰线提高了一些，双腿立刻变长。"],
    },
    "图案": {
        "条纹": ["条纹整齐排列，显得很有精神。", "简单的条纹让整体不再单调。"],
        "碎花": ["小小的碎花像春天的草地。", "碎花散落其间，浪漫又清新。"],
        "格子": ["格子图案带着一点学院气息。", "经典的格子怎么搭都不会错。"],
        "纯色": ["纯色的设计简单，什么都能搭。", "没有多余的图案，越看越高级。"],
    },
    "风格": {
        "通勤": ["上班穿得体，下班约会也合适。", "通勤的风格，让人看起来很专业。"],
        "休闲": ["周末出门穿上它，轻松又自在。", "休闲的风格，逛街散步都合适。"],
        "复古": ["复古的味道，像从老照片里走出来。", "带着旧时光的气息，很有故事感。"],
        "运动": ["跑步健身都没问题，充满活力。", "运动的风格，穿上就想出去走走。"],
    },
    "细节": {
        "口袋": ["两侧的口袋可以放手机和钥匙。", "口袋又大又深，出门不用带包。"],
        "纽扣": ["一排精致的纽扣是点睛之笔。", "纽扣打磨得圆润，细节很用心。"],
        "腰带": ["配一条腰带，松紧可以自己调。", "腰带轻轻一系，身形就出来了。"],
        "圆领": ["圆领衬得脸更小，也更亲切。", "简洁的圆领，露出好看的锁骨。"],
    },
}


REQUESTS = ["换成{color}再写一次", "如果是{color}的呢？", "再写一个{color}的"]


def make_row(random_: random.Random) -> dict[str, str]:
    """One product with the text about it."""
    kind, color = random_.choice(TYPES), random_.choice(list(COLORS))
    chosen = sorted(random_.sample(list(DETAILS), random_.choice([2, 3])), key=list(DETAILS).index)
    values = {name: random_.choice(list(DETAILS[name])) for name in chosen}
    words = [("类型", kind), ("颜色", color), *values.items()]
    text = opening(random_, kind, color) + "".join(random_.choice(DETAILS[name][values[name]]) for name in values)
    return {"content": "*".join(f"{name}#{value}" for name, value in words), "summary": text}


def opening(random_: random.Random, kind: str, color: str) -> str:
    """The first sentence about a product."""
    return random_.choice(OPENINGS).format(type=kind, color=full_name(color), mood=COLORS[color])


def full_name(color: str) -> str:
    """A color as it is said: with the word for color at its end."""
    return color if color.endswith("色") else f"{color}色"


def make_talk(random_: random.Random) -> dict[str, Any]:
    """A product, the text about it, and the wish for another color."""
    row = make_row(random_)
    kind, color = (word.split("#")[1] for word in row["content"].split("*")[:2])
    other = random_.choice([name for name in COLORS if name != color])
    rest = row["summary"].partition("。")[2]
    request = random_.choice(REQUESTS).format(color=full_name(other))
    answer = opening(random_, kind, other) + rest
    return {"prompt": request, "response": answer, "history": [[row["content"], row["summary"]]]}


def write(folder: Path, rows: list[Any], num_train: int) -> None:
    """The first `num_train` rows to train.json, the others to dev.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows[:num_train]), ("dev", rows[num_train:])):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"{name}.json").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Write clothes/ and talks/, each with train.json and dev.json; no product of clothes/ is in both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    random_ = random.Random(SEED)
    rows: dict[str, Any] = {}
    while len(rows) < NUM_TRAIN + NUM_DEV:
        row = make_row(random_)
        rows.setdefault(row["content"], row)
    write(folder / "clothes", list(rows.values()), NUM_TRAIN)
    write(folder / "talks", [make_talk(random_) for _ in range(NUM_TALKS + NUM_DEV_TALKS)], NUM_TALKS)


if __name__ == "__main__":
    main()

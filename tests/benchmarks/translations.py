"""Words of the bench's queries in other languages: types, colours, patterns, genders and materials.

Our own table, of the words that occur, as a shop's customers would say it. It holds the vocabulary of test queries: no
model may be trained on it. Words are replaced one by one in their place, as poor machine translation does, and not put
into the order or the inflection of the other language.
"""

import re
from functools import lru_cache
from random import Random
from typing import NamedTuple

LANGUAGES = {"zh": "Chinese", "es": "Spanish", "de": "German"}


class Words(NamedTuple):
    """An English word in other words.

    Attributes:
        back: What comes back from a translation into another language: English, but another word.
        zh: Chinese.
        es: Spanish.
        de: German.
    """

    back: str
    zh: str
    es: str
    de: str


_TABLE = """
backpack | schoolbag | 双肩包 | mochila | Rucksack
bag | sack | 包 | bolso | Tasche
bangle | wrist ring | 手镯 | brazalete | Armreif
bangle bracelet | wrist ring | 手镯 | brazalete | Armreif
bra | brassiere | 文胸 | sujetador | BH
bracelet | hand chain | 手链 | pulsera | Armband
belt | waistband | 腰带 | cinturón | Gürtel
boxer | underpants | 平角裤 | bóxers | Boxershorts
briefs | underpants | 三角裤 | calzoncillos | Unterhose
brief | underpants | 三角裤 | calzoncillos | Unterhose
cap | hat | 帽子 | gorra | Mütze
capri | three-quarter pants | 七分裤 | pantalón pirata | Caprihose
casual shoe | leisure footwear | 休闲鞋 | zapatos casuales | Freizeitschuhe
clutch | hand-held bag | 手拿包 | cartera de mano | Abendtasche
cufflink | sleeve buttons | 袖扣 | gemelos | Manschettenknöpfe
dress | long skirt | 连衣裙 | vestido | Kleid
dress shoe | official footwear | 正装鞋 | zapatos de vestir | Anzugschuhe
duffel bag | cylinder bag | 旅行袋 | bolsa de viaje | Reisetasche
dupatta | long scarf | 长围巾 | chal | Schal
earring | ear studs | 耳环 | pendientes | Ohrringe
flat | flat-bottomed footwear | 平底鞋 | zapatos planos | Ballerinas
flip flop | clip-toe slippers | 人字拖 | chanclas | Zehentrenner
formal shoe | official footwear | 正装鞋 | zapatos de vestir | Anzugschuhe
handbag | hand-carried bag | 手提包 | bolso | Handtasche
heel | high-heel footwear | 高跟鞋 | tacones | Absatzschuhe
hoodie | hooded garment | 连帽衫 | sudadera con capucha | Kapuzenpullover
jacket | outer garment | 夹克 | chaqueta | Jacke
jean | cowboy pants | 牛仔裤 | vaqueros | Jeanshose
jogger | sports pants | 运动裤 | pantalón de chándal | Jogginghose
jumper | knitwear | 毛衣 | jersey | Pullover
kurta | tunic shirt | 库尔塔长衫 | kurta | Kurta
kurti | short tunic | 库尔蒂衫 | kurti | Kurti
laptop bag | computer bag | 电脑包 | bolsa para portátil | Laptoptasche
legging | tight pants | 打底裤 | mallas | Leggins
lip gloss | lip oil | 唇彩 | brillo de labios | Lipgloss
lipstick | lip cream | 口红 | pintalabios | Lippenstift
lounge pant | home pants | 家居裤 | pantalón de casa | Hauspants
messenger bag | postman bag | 邮差包 | bandolera | Umhängetasche
muffler | neck cloth | 围脖 | bufanda | Halstuch
nail polish | nail oil | 指甲油 | esmalte de uñas | Nagellack
necklace | neck chain | 项链 | collar | Halskette
necktie | neck cloth | 领带 | corbata | Krawatte
night suit | sleepwear | 睡衣套装 | pijama | Schlafanzug
nightdress | sleep skirt | 睡裙 | camisón | Nachthemd
nightgown | sleep skirt | 睡袍 | camisón | Nachthemd
pant | long trousers | 裤子 | pantalones | Hose
pendant | hanging ornament | 吊坠 | colgante | Anhänger
purse | money bag | 钱包 | monedero | Geldbeutel
pyjama | sleepwear | 睡衣 | pijama | Schlafanzug
ring | finger ornament | 戒指 | anillo | Fingerring
rucksack | schoolbag | 背包 | mochila | Rucksack
running shoe | jogging footwear | 跑步鞋 | zapatillas de correr | Laufschuhe
sandal | cool footwear | 凉鞋 | sandalias | Sandalen
saree | Indian wrap | 纱丽 | sari | Sari
sari | Indian wrap | 纱丽 | sari | Sari
scarf | neck cloth | 围巾 | pañuelo | Schal
shirt | blouse | 衬衫 | camisa | Hemd
shoe | footwear | 鞋 | zapatos | Schuhe
shorts | half trousers | 短裤 | pantalones cortos | kurze Hose
skirt | half dress | 半身裙 | falda | Rock
slipper | house footwear | 拖鞋 | zapatillas | Hausschuhe
sock | hosiery | 袜子 | calcetines | Socken
sports sandal | exercise cool footwear | 运动凉鞋 | sandalias deportivas | Sportsandalen
sports shoe | exercise footwear | 运动鞋 | zapatillas deportivas | Sportschuhe
stole | shawl | 披肩 | estola | Stola
sunglasses | sun mirrors | 太阳镜 | gafas de sol | Sonnenbrille
sunglass | sun mirrors | 太阳镜 | gafas de sol | Sonnenbrille
sweater | knitwear | 毛衣 | jersey | Pullover
sweatshirt | sports garment | 卫衣 | sudadera | Sweatshirt
t-shirt | short-sleeved garment | T恤 | camiseta | T-Shirt
tee | short-sleeved garment | T恤 | camiseta | T-Shirt
tie | neck cloth | 领带 | corbata | Krawatte
top | upper garment | 上衣 | blusa | Oberteil
track pant | sports pants | 运动裤 | pantalón de chándal | Trainingshose
trainer | exercise footwear | 运动鞋 | zapatillas deportivas | Turnschuhe
trouser | long pants | 长裤 | pantalones | Hose
trunk | underpants | 平角内裤 | bóxers | Trunks
tshirt | short-sleeved garment | T恤 | camiseta | T-Shirt
tunic | long garment | 长衫 | túnica | Tunika
vest | sleeveless garment | 背心 | chaleco | Weste
wallet | money clip | 钱包 | cartera | Geldbörse
watch | timepiece | 手表 | reloj | Uhr
wrist watch | hand timepiece | 腕表 | reloj de pulsera | Armbanduhr
beige | rice color | 米色 | beis | beige
black | dark | 黑色 | negro | schwarz
blue | azure | 蓝色 | azul | blau
bronze | ancient copper | 青铜色 | bronce | bronzefarben
brown | coffee color | 棕色 | marrón | braun
charcoal | carbon gray | 炭灰色 | gris carbón | anthrazit
copper | red metal | 铜色 | cobre | kupferfarben
cream | milk color | 奶油色 | crema | cremefarben
gold | metal yellow | 金色 | dorado | goldfarben
golden | metal yellow | 金色 | dorado | golden
gray | ash color | 灰色 | gris | grau
green | verdant | 绿色 | verde | grün
grey | ash color | 灰色 | gris | grau
khaki | earth color | 卡其色 | caqui | khakifarben
lavender | light purple | 薰衣草色 | lavanda | lavendelfarben
magenta | product red | 洋红色 | magenta | magentarot
maroon | dark red | 栗色 | granate | weinrot
mustard | sauce yellow | 芥末黄 | mostaza | senfgelb
navy | dark blue | 藏青色 | azul marino | marineblau
navy blue | dark blue | 藏青色 | azul marino | marineblau
olive | yellow green | 橄榄绿 | verde oliva | oliv
orange | tangerine | 橙色 | naranja | orangefarben
peach | light pink | 桃色 | melocotón | pfirsichfarben
pink | powder | 粉色 | rosa | rosa
purple | violet | 紫色 | morado | lila
red | scarlet | 红色 | rojo | rot
silver | metal white | 银色 | plateado | silbern
tan | light brown | 棕褐色 | canela | hellbraun
teal | blue green | 蓝绿色 | verde azulado | petrol
white | snow color | 白色 | blanco | weiß
yellow | lemon color | 黄色 | amarillo | gelb
check | lattice | 格子 | de cuadros | kariert
checked | lattice | 格子 | de cuadros | kariert
plain | pure color | 纯色 | liso | uni
print | stamped | 印花 | estampado | bedruckt
printed | stamped | 印花 | estampado | bedruckt
solid | pure color | 纯色 | liso | einfarbig
striped | line pattern | 条纹 | de rayas | gestreift
stripe | line pattern | 条纹 | de rayas | gestreift
boy | male child | 男童 | niño | Jungen
girl | female child | 女童 | niña | Mädchen
lady | female | 女士 | mujer | Damen
ladies | female | 女士 | mujer | Damen
men | male | 男士 | hombre | Herren
woman | female | 女士 | mujer | Damen
women | female | 女士 | mujer | Damen
canvas | sailcloth | 帆布 | lona | Segeltuch
cotton | pure cloth | 棉 | algodón | Baumwolle
faux leather | artificial skin | 人造革 | cuero sintético | Kunstleder
leather | skin | 皮革 | cuero | Leder
nylon | polyamide | 尼龙 | nailon | Nylonstoff
polyester | synthetic fiber | 涤纶 | poliéster | Polyesterstoff
silk | natural fiber | 丝绸 | seda | Seide
casual | leisure | 休闲 | informal | leger
ethnic | national style | 民族风 | étnico | folkloristisch
formal | official | 正式 | formal | festlich
sports | exercise | 运动 | deportivo | Sport
set | suit | 套装 | conjunto | Set
for | to | 适合 | para | für
"""
TABLE = {key: Words(*others) for key, *others in (re.split(r"\s*\|\s*", one) for one in _TABLE.strip().splitlines())}
_CHINESE = re.compile(r"(?<=[\u3400-\u9fff]) (?=[\u3400-\u9fff])")


@lru_cache
def _pattern() -> re.Pattern[str]:
    words = "|".join(re.escape(word).replace(r"\ ", r"[\s-]") for word in sorted(TABLE, key=len, reverse=True))
    return re.compile(rf"(?<!\w)({words})(?:'s|es|s)?(?!\w)", re.IGNORECASE)


def known(text: str) -> list[str]:
    """The words of the table that a text holds, in its order, in singular."""
    return [_key(word) for word in _pattern().findall(text)]


def translated(text: str, into: str, share: float = 1.0, rng: Random | None = None, keep: str = "") -> str:
    """A text with words of the table in another language.

    Args:
        text: English.
        into: A field of `Words`.
        share: Of the words that are replaced, in [0, 1]; each is drawn by itself.
        rng: Of the draws; needed where `share` is below 1.
        keep: Words that stay as they are, such as a brand.
    """

    def replaced(found: re.Match[str]) -> str:
        drawn = rng is None or rng.random() < share
        return getattr(TABLE[_key(found[1])], into) if drawn else found[0]

    parts = re.split(f"({re.escape(keep)})", text, flags=re.IGNORECASE) if keep else [text]
    whole = "".join(part if place % 2 else _pattern().sub(replaced, part) for place, part in enumerate(parts))
    # Chinese puts no blank between words.
    return _CHINESE.sub("", whole) if into == "zh" else whole


def _key(word: str) -> str:
    low = word.lower()
    return low if low in TABLE else re.sub(r"[\s-]", " ", low)

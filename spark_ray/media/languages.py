"""Names of languages: users write `de`, containers `deu` or `ger`, and all three mean one."""

import re
from typing import Annotated

from pydantic import AfterValidator

# ISO 639-1, then ISO 639-2/T, then 639-2/B where that differs; all that have two letters. After the
# list of the Library of Congress, as Debian's iso-codes 4.15 holds it.
_CODES = """
    aa/aar ab/abk ae/ave af/afr ak/aka am/amh an/arg ar/ara as/asm av/ava ay/aym az/aze ba/bak
    be/bel bg/bul bh/bih bi/bis bm/bam bn/ben bo/bod/tib br/bre bs/bos ca/cat ce/che ch/cha
    co/cos cr/cre cs/ces/cze cu/chu cv/chv cy/cym/wel da/dan de/deu/ger dv/div dz/dzo ee/ewe
    el/ell/gre en/eng eo/epo es/spa et/est eu/eus/baq fa/fas/per ff/ful fi/fin fj/fij fo/fao
    fr/fra/fre fy/fry ga/gle gd/gla gl/glg gn/grn gu/guj gv/glv ha/hau he/heb hi/hin ho/hmo
    hr/hrv ht/hat hu/hun hy/hye/arm hz/her ia/ina id/ind ie/ile ig/ibo ii/iii ik/ipk io/ido
    is/isl/ice it/ita iu/iku ja/jpn jv/jav ka/kat/geo kg/kon ki/kik kj/kua kk/kaz kl/kal km/khm
    kn/kan ko/kor kr/kau ks/kas ku/kur kv/kom kw/cor ky/kir la/lat lb/ltz lg/lug li/lim ln/lin
    lo/lao lt/lit lu/lub lv/lav mg/mlg mh/mah mi/mri/mao mk/mkd/mac ml/mal mn/mon mr/mar
    ms/msa/may mt/mlt my/mya/bur na/nau nb/nob nd/nde ne/nep ng/ndo nl/nld/dut nn/nno no/nor
    nr/nbl nv/nav ny/nya oc/oci oj/oji om/orm or/ori os/oss pa/pan pi/pli pl/pol ps/pus pt/por
    qu/que rm/roh rn/run ro/ron/rum ru/rus rw/kin sa/san sc/srd sd/snd se/sme sg/sag si/sin
    sk/slk/slo sl/slv sm/smo sn/sna so/som sq/sqi/alb sr/srp ss/ssw st/sot su/sun sv/swe sw/swa
    ta/tam te/tel tg/tgk th/tha ti/tir tk/tuk tl/tgl tn/tsn to/ton tr/tur ts/tso tt/tat tw/twi
    ty/tah ug/uig uk/ukr ur/urd uz/uzb ve/ven vi/vie vo/vol wa/wln wo/wol xh/xho yi/yid yo/yor
    za/zha zh/zho/chi zu/zul
"""
_TWO_LETTERS = {
    long: short
    for short, *longs in (entry.split("/") for entry in _CODES.split())
    for long in longs
}
_CODE = re.compile(r"[A-Za-z]{2,3}(?:[-_]\w+)*")


def _check_code(value: str) -> str:
    if not _CODE.fullmatch(value):
        raise ValueError(f"{value!r} is no ISO 639 code of a language, such as 'en', 'eng' or 'de'")
    return value


LanguageCode = Annotated[str, AfterValidator(_check_code)]
"""A language as users write it, perhaps with a region: `en`, `eng`, `de-AT`."""


def language_code(name: str | None) -> str | None:
    """One code for each language: two letters where ISO 639-1 has them. None if it is unknown.

    A region is left out: `de-AT` is `de`.
    """
    code = (name or "").replace("_", "-").partition("-")[0].strip().lower()
    return None if code in {"", "und"} else _TWO_LETTERS.get(code, code)

"""How fast the index is filled, and how fast it answers, with a given number of studies.

    python -m tests.bench.index_bench 10000 1000000

Studies are spread evenly, `STUDIES_PER_DAY` to a day, and a family name is shared by a few dozen
studies, so that a query has as many answers in a small index as in a large one.
"""

import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from hashlib import sha256
from typing import Any

from appliance.dicom.attributes import BY_KEYWORD, Level
from appliance.dicom.matching import compile_key
from appliance.foundation.files import FileSystem
from appliance.index.facts import CloudFacts, InstanceFacts, PackFacts
from appliance.index.index import Index

STUDIES_PER_DAY = 150
STUDIES_PER_PATIENT = 3
PATIENTS_PER_FAMILY = 8
INSTANCES_PER_STUDY = 2
BATCH_STUDIES = 10_000
QUERIES = 300
FIRST_DAY = date(1998, 1, 1)
PRIME = 2_654_435_761

KANA = "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワ"
SYLLABLES = (
    "a i u e o ka ki ku ke ko sa shi su se so ta chi tsu te to na ni nu ne no ha hi fu he ho "
    "ma mi mu me mo ya yu yo ra ri ru re ro wa"
)
ROMAJI = SYLLABLES.split()
KANJI = "山田中村鈴木佐藤高橋伊渡辺小林加吉斎松本井口清水森池阿部石川原島長谷近坂遠青福西太三岡"
GIVEN = [("Tarou", "太郎", "タロウ"), ("Hanako", "花子", "ハナコ"), ("Ken", "健", "ケン")]
LATIN = ["Maria^Anna", "John^Robert", "Søren", "Zoë^Marie"]
TAGS = {name: BY_KEYWORD[name].tag for name in BY_KEYWORD}
CT = "1.2.840.10008.5.1.4.1.1.2"
JPEG = "1.2.840.10008.1.2.4.70"
CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


def family(number: int) -> tuple[str, str, str]:
    """Return a family name in Latin letters, kanji and kana; near numbers are not alike."""
    scattered = number * PRIME % (1 << 32)
    syllables = []
    for _ in range(5):
        scattered, digit = divmod(scattered, len(ROMAJI))
        syllables.append(digit)
    latin = "".join(ROMAJI[digit] for digit in syllables).capitalize()
    return (
        latin,
        "".join(KANJI[d % len(KANJI)] for d in syllables[:3]),
        "".join(KANA[d] for d in syllables),
    )


def patient_of(study: int, study_count: int) -> int:
    """Return the patient of a study; a patient's studies lie years apart."""
    return study % max(study_count // STUDIES_PER_PATIENT, 1)


def name_of(patient: int) -> str:
    """Return a patient's name; every fourth has Latin letters alone."""
    latin, kanji, kana = family(patient // PATIENTS_PER_FAMILY)
    if patient % 4 == 3:
        return f"{latin}^{LATIN[patient % len(LATIN)]}"
    given = GIVEN[patient % len(GIVEN)]
    return f"{latin}^{given[0]}={kanji}^{given[1]}={kana}^{given[2]}"


def patient_id_of(patient: int) -> str:
    """Return a patient's identifier, eight digits."""
    return f"{patient * PRIME % 100_000_000:08d}"


def day_of(study: int) -> str:
    """Return the date of a study."""
    return (FIRST_DAY + timedelta(days=study // STUDIES_PER_DAY)).strftime("%Y%m%d")


def pack_id_of(study: int) -> str:
    """Return a pack id that grows with time, as the real ones do."""
    value = (study * 600_000 + 900_000_000_000) << 80 | study * PRIME % (1 << 80)
    return "".join(CROCKFORD[value >> 5 * digit & 31] for digit in range(25, -1, -1))


def facts_of(study: int, study_count: int, instances: int = INSTANCES_PER_STUDY) -> PackFacts:
    """Return the pack of a study, verified in the cloud and still here."""
    at = 900_000_000_000_000 + study * 600_000_000
    uid = f"1.2.392.200036.9116.2.6.1.48.1214833767.{1_398_756_123 + study}"
    patient = patient_of(study, study_count)
    shared = {
        TAGS["StudyDate"]: day_of(study),
        TAGS["SeriesDate"]: day_of(study),
        TAGS["StudyTime"]: f"{8 + study % 10:02d}{study % 60:02d}{study % 59:02d}",
        TAGS["AccessionNumber"]: f"{study * PRIME % 10_000_000_000:010d}",
        TAGS["Modality"]: "CT",
        TAGS["Manufacturer"]: "TOSHIBA",
        TAGS["InstitutionName"]: "Azekura Hospital",
        TAGS["ReferringPhysicianName"]: "Ishii^Jirou=石井^次郎",
        TAGS["StudyDescription"]: "CHEST CT",
        TAGS["SeriesDescription"]: "Axial 5mm",
        TAGS["PatientName"]: name_of(patient),
        TAGS["PatientID"]: patient_id_of(patient),
        TAGS["IssuerOfPatientID"]: "HOSP",
        TAGS["PatientBirthDate"]: f"19{20 + patient % 80}0{1 + patient % 9}1{patient % 10}",
        TAGS["PatientSex"]: "FM"[patient % 2],
        TAGS["BodyPartExamined"]: "CHEST",
        TAGS["ProtocolName"]: "Routine chest",
        TAGS["StudyID"]: str(study % 10_000),
        TAGS["SeriesNumber"]: "2",
    }
    members = [
        InstanceFacts(
            study_instance_uid=uid,
            series_instance_uid=f"{uid}.2",
            sop_instance_uid=f"{uid}.2.{n + 1}",
            sop_class_uid=CT,
            transfer_syntax_uid=JPEG,
            offset=2_048 + n * 263_168,
            length=261_000,
            sha256=sha256(b"%d %d" % (study, n)).digest(),
            received_at_us=at + n * 50_000,
            calling_ae="CT1",
            called_ae="AZEKURA",
            peer_address="192.0.2.21",
            tls_subject="",
            character_set="\\ISO 2022 IR 87",
            attributes=shared
            | {
                TAGS["ImageType"]: "ORIGINAL\\PRIMARY\\AXIAL",
                TAGS["ContentDate"]: day_of(study),
                TAGS["ContentTime"]: f"0910{n % 60:02d}",
                TAGS["AcquisitionNumber"]: "1",
                TAGS["InstanceNumber"]: str(n + 1),
                TAGS["PhotometricInterpretation"]: "MONOCHROME2",
                TAGS["Rows"]: "512",
                TAGS["Columns"]: "512",
                TAGS["BitsAllocated"]: "16",
                TAGS["BitsStored"]: "12",
            },
        )
        for n in range(instances)
    ]
    pack_id = pack_id_of(study)
    cloud = CloudFacts(
        key=f"packs/2024/01/02/{pack_id}.tar.age",
        version_id="3sL4kqtJlcpXroDTDmJ.rmSpXd3dIbrHY",
        size=600_000,
        checksum="y3QdQ1yHZ0N9d3YlB0E5nPbqkq7oQO4dYh1pXq3sV5o=",
        locked_until_us=at + 157_680_000_000_000,
        age_header=b"a" * 400,
        file_key=b"k" * 16,
        lock_mode="compliance",
        node="site-a",
        sequence=study // 20,
        verified_at_us=at + 60_000_000,
    )
    return PackFacts(pack_id, "site-a", members, local=True, size=530_000, cloud=cloud)


def fill(index: Index, study_count: int, instances: int = INSTANCES_PER_STUDY) -> dict[str, float]:
    """Fill an index and return how fast that went; making the facts is not counted."""
    applying = 0.0
    for start in range(0, study_count, BATCH_STUDIES):
        stop = min(start + BATCH_STUDIES, study_count)
        facts = [facts_of(study, study_count, instances) for study in range(start, stop)]
        began = time.perf_counter()
        with index.write() as txn:
            for pack in facts:
                txn.apply_pack(pack)
        applying += time.perf_counter() - began
    return {
        "fill_s": round(applying, 2),
        "instances_per_s": round(study_count * instances / applying),
        "studies_per_s": round(study_count / applying),
    }


def ask(index: Index, level: Level, **keys: str) -> int:
    """Run one query to its end and return how many answers it had."""
    matchers = {TAGS[k]: compile_key(TAGS[k], BY_KEYWORD[k].vr, v) for k, v in keys.items()}
    return sum(1 for _ in index.query(level, matchers))


def queries(study_count: int) -> dict[str, Callable[[random.Random], dict[str, str]]]:
    """Return the kinds of query, each a maker of keys."""

    def patient(rng: random.Random) -> int:
        return patient_of(rng.randrange(study_count), study_count)

    return {
        "patient_id": lambda rng: {"PatientID": patient_id_of(patient(rng))},
        "name_prefix": lambda rng: {
            "PatientName": family(patient(rng) // PATIENTS_PER_FAMILY)[0].upper() + "*"
        },
        "kana_prefix": lambda rng: {
            "PatientName": family(patient(rng) // PATIENTS_PER_FAMILY)[2] + "*"
        },
        "date": lambda rng: {"StudyDate": day_of(rng.randrange(study_count))},
        "date_and_name": lambda rng: {
            "StudyDate": f"{day_of(rng.randrange(study_count))[:4]}0101-",
            "PatientName": family(patient(rng) // PATIENTS_PER_FAMILY)[0] + "*",
        },
        "accession": lambda rng: {
            "AccessionNumber": f"{rng.randrange(study_count) * PRIME % 10_000_000_000:010d}"
        },
    }


def timed(work: Callable[[], int], count: int) -> Iterator[tuple[float, float, int]]:
    """Yield milliseconds by the clock and of this thread's work, and answers, of each run."""
    for _ in range(count):
        began, began_working = time.perf_counter(), time.thread_time()
        answers = work()
        worked = time.thread_time() - began_working
        yield (time.perf_counter() - began) * 1_000, worked * 1_000, answers


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value below which so many percent of the values lie."""
    return round(sorted(values)[len(values) * percent // 100], 3)


def measure(index: Index, study_count: int) -> dict[str, Any]:
    """Return p50 and p99 in milliseconds, and the mean number of answers, of each kind.

    On a machine that others use, `p99_cpu_ms` says what the query itself took.
    """
    rng = random.Random(study_count)
    found: dict[str, Any] = {}
    for kind, keys in queries(study_count).items():
        runs = list(timed(lambda keys=keys: ask(index, Level.STUDY, **keys(rng)), QUERIES))
        times, work, answers = zip(*runs, strict=True)
        found[kind] = {
            "p50_ms": percentile(times, 50),
            "p99_ms": percentile(times, 99),
            "p99_cpu_ms": percentile(work, 99),
            "answers": round(sum(answers) / len(runs), 1),
        }
    uid = "1.2.392.200036.9116.2.6.1.48.1214833767"
    uids = [f"{uid}.{1_398_756_123 + rng.randrange(study_count)}.2.1" for _ in range(2_000)]
    began = time.perf_counter()
    hits = sum(len(index.find_sop(each)) for each in uids)
    found["find_sop_us"] = round((time.perf_counter() - began) / len(uids) * 1e6, 2)
    assert hits == len(uids)
    return found


def run(study_count: int) -> dict[str, Any]:
    """Fill an index of so many studies in a new directory, measure, and remove it."""
    directory = tempfile.mkdtemp(prefix="azekura-index-bench-")
    try:
        with Index(FileSystem(), directory + "/index") as index:
            figures: dict[str, Any] = {"studies": study_count} | fill(index, study_count)
            figures["bytes_per_study"] = index.used_bytes() // study_count
            return figures | measure(index, study_count)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    for size in sys.argv[1:] or ["10000"]:
        print(json.dumps(run(int(size)), indent=2))

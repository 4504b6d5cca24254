-- Which versions the other devices run that were seen in the last $2 seconds, and some devices of each, those first that were
-- seen last.
SELECT left(version, 40) AS version, count(*) AS devices, (array_agg(id::text ORDER BY seen_at DESC))[1:5] AS some
FROM tidewater.devices
WHERE id::text IS DISTINCT FROM $1::text AND seen_at >= now() - make_interval(secs => $2::float8)
GROUP BY left(version, 40) ORDER BY count(*) DESC, 1

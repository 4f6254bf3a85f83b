# Application services and who may masquerade: docs/requests.md, 2.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use MatrixUserHash;
use Test::Nginx::Socket 'no_plan';

MatrixUserHash::use_steps();
run_tests();

__DATA__

=== an application service alone is its sender
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = MISS @telegrambot:example.org
GET /sync "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = HIT @telegrambot:example.org
asked 1

=== with a user_id of its namespace it is that user, whether or not it came alone before
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync?user_id=@telegram_42:example.org "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = MISS @telegram_42:example.org
GET /sync "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = MISS|HIT @telegrambot:example.org
GET /sync?user_id=@telegram_7:example.org "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = MISS @telegram_7:example.org
GET /sync?user_id=@telegram_42:example.org "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = HIT @telegram_42:example.org
GET /sync?user_id=%40telegram_42%3Aexample.org "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = HIT @telegram_42:example.org
GET /sync?us%65r_id=@telegram_7:example.org "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = HIT @telegram_7:example.org
asked 3

=== the token in the query does as well
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync?access_token=as_telegram_3f9c1be07d5a4c21&user_id=@telegram_42:example.org = MISS @telegram_42:example.org

=== whoami is asked with the user_id, encoded
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync?user_id=@telegram_4=2:example.org "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = MISS @telegram_4=2:example.org
GET /__log = 200 ~ "query": \{"user_id": "@telegram_4=2:example.org"\}

=== a device_id goes along with it
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync?user_id=@telegram_42:example.org&device_id=GHOSTDEV1 "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = MISS @telegram_42:example.org
GET /__log = 200 ~ "device_id": "GHOSTDEV1"

=== … and so does org.matrix.msc3202.device_id, under its own name
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync?user_id=@telegram_42:example.org&org.matrix.msc3202.device_id=GHOSTDEV2 "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = MISS @telegram_42:example.org
GET /__log = 200 ~ "org.matrix.msc3202.device_id": "GHOSTDEV2"

=== nothing else of the query goes along
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync?since=s1&user_id=@telegram_42:example.org&filter=9 "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = MISS @telegram_42:example.org
GET /__log = 200 ~ ^(?!.*(?:since|filter))

=== a user outside the namespace (403) is an error that spoils nothing
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync?user_id=@alice:example.org "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = ERROR 98982c53003fa7f7
GET /sync?user_id=@telegram_42:example.org "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = MISS @telegram_42:example.org
GET /sync "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = MISS|HIT @telegrambot:example.org

=== a device that does not exist (400) is an error that spoils nothing
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync?user_id=@telegram_42:example.org&device_id=MISSING "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = ERROR 98982c53003fa7f7
GET /sync?user_id=@telegram_7:example.org "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = MISS @telegram_7:example.org

=== a puppet token, which has no device either, never masquerades, and learning that costs one question
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync?user_id=@bob:example.org {puppet1/admin} = MISS @puppet1:example.org
asked 1..2
GET /sync?user_id=@carol:example.org {puppet1/admin} = HIT @puppet1:example.org
GET /sync?user_id=@dave:example.org {puppet1/admin} = HIT @puppet1:example.org
GET /sync {puppet1/admin} = HIT @puppet1:example.org
asked 1..2

=== a puppet token that came alone first
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync {puppet2/admin} = MISS @puppet2:example.org
GET /sync?user_id=@bob:example.org {puppet2/admin} = MISS|HIT @puppet2:example.org
GET /sync?user_id=@carol:example.org {puppet2/admin} = HIT @puppet2:example.org
asked 2

=== an ordinary user's user_id is ignored, and not sent
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync?user_id=@bob:example.org {alice/phone} = MISS @alice:example.org
GET /sync?user_id=@carol:example.org {alice/phone} = HIT @alice:example.org
GET /sync {alice/phone} = HIT @alice:example.org
asked 1

=== … and fifty of them add no lookup
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps eval
CORE::join "\n", 'GET /sync {alice/phone} = MISS @alice:example.org',
    (map { "GET /sync?user_id=\@invented$_:example.org {alice/phone} = HIT \@alice:example.org" } 1 .. 50), 'asked 1'

=== an empty user_id is none
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync?user_id= {alice/phone} = MISS @alice:example.org
asked 1

=== a user_id with bytes that no request line may hold reaches whoami encoded
--- config
location / { matrix_user_hash http://$TEST_NGINX_WHOAMI; proxy_pass http://sync_workers; }
--- steps
GET /sync?user_id=@telegram_42:example.org%0d%0aX-Evil:%20yes "Authorization: Bearer as_telegram_3f9c1be07d5a4c21" = ERROR|MISS|ANONYMOUS|HIT other
GET /__log = 200 ~ ^(?!.*X-Evil: yes\\r\\n)
